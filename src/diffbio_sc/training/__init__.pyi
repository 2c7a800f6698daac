from .checkpoint import Checkpoint
from .loop import train
from .optimizers import Adam

__all__ = ["Adam", "Checkpoint", "train"]
