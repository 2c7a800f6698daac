from .chromatin_state import ChromatinStateAnnotator, ChromatinStateConfig
from .peak_caller import DifferentiablePeakCaller
from .peak_config import PeakCallerConfig

__all__ = [
    "ChromatinStateAnnotator",
    "ChromatinStateConfig",
    "DifferentiablePeakCaller",
    "PeakCallerConfig",
]
