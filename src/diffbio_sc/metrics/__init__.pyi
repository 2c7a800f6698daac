from ._composition import composition
