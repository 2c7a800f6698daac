"""pyBigWig, which may not be installed."""

from __future__ import annotations

from typing import Any


def pybigwig() -> Any:
    """Return pyBigWig, or raise ImportError that names the extra."""
    try:
        import pyBigWig
    except ImportError as error:
        raise ImportError("bigWig files need pyBigWig: pip install 'diffbio-sc[genome]'.") from error
    return pyBigWig
