from .peak_caller import DifferentiablePeakCaller, PeakCallerConfig

__all__ = ["DifferentiablePeakCaller", "PeakCallerConfig"]
