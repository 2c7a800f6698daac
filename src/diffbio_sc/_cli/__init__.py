"""The command line over the functions of the package: ``diffbio-sc COMMAND ...``.

Options are read from the signatures and docstrings of the functions, so that names, defaults and help cannot drift.
"""

from diffbio_sc._cli.application import main

__all__ = ["main"]
