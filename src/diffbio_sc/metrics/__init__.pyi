from ._composition import composition
from ._foscttm import foscttm
from ._integration import integration

__all__ = ["composition", "foscttm", "integration"]
