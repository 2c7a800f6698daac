"""What to cite: the package, and the papers behind the functions that were used."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any

_ENTRY = re.compile(r"^@\w+\{\s*([^,\s]+),.*?^\}", re.MULTILINE | re.DOTALL)
_CITED = re.compile(r":cite:\w+:`([^`]+)`")

PACKAGE = """@software{diffbio_sc,
  title  = {diffbio\\_sc: differentiable operators for single-cell, spatial and epigenomic data},
  author = {{diffbio\\_sc developers}},
  version = {VERSION},
}"""


def citation(*functions: Callable[..., Any]) -> str:
    """Give what to cite, as BibTeX: the package, and the sources of the functions named.

    Parameters
    ----------
    functions
        Functions or classes of the package, such as ``dbio.tl.deconvolve``. Default: none, the package alone.

    Returns
    -------
    BibTeX entries, the package first, the others in the order in which the docstrings cite them.

    Raises
    ------
    TypeError
        If an argument is neither a function nor a class.

    Examples
    --------
    >>> import diffbio_sc as dbio
    >>> print(dbio.citation(dbio.tl.call_peaks))  # doctest: +ELLIPSIS
    @software{diffbio_sc,
    ...Zhang2008...
    """
    from diffbio_sc import __version__

    entries = _entries()
    keys: dict[str, None] = {}
    for function in functions:
        if not callable(function):
            raise TypeError(f"citation takes functions such as dbio.tl.deconvolve, found {function!r}.")
        for cited in _CITED.findall(inspect.getdoc(function) or ""):
            keys |= dict.fromkeys(key.strip() for key in cited.split(","))
    return "\n\n".join([PACKAGE.replace("VERSION", __version__), *(entries[key] for key in keys)])


def _entries() -> dict[str, str]:
    text = files("diffbio_sc").joinpath("references.bib").read_text(encoding="utf-8")
    return {match.group(1): match.group(0) for match in _ENTRY.finditer(text)}
