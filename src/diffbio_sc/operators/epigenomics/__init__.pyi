from .chromatin_state import ChromatinStateAnnotator, ChromatinStateConfig
from .peak_caller import DifferentiablePeakCaller, PeakCallerConfig

__all__ = [
    "ChromatinStateAnnotator",
    "ChromatinStateConfig",
    "DifferentiablePeakCaller",
    "PeakCallerConfig",
]
