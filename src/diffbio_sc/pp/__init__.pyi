from ._binarize import binarize
from ._coverage import coverage
from ._parse_regions import parse_regions
from ._pseudobulk import pseudobulk

__all__ = ["binarize", "coverage", "parse_regions", "pseudobulk"]
