from .checkpoint import Checkpoint
from .loop import train
from .optimizers import Adam
from .streams import BatchSource, IteratorSource

__all__ = ["Adam", "BatchSource", "Checkpoint", "IteratorSource", "train"]
