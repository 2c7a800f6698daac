from ._binarize import binarize
from ._combine_contacts import combine_contacts
from ._contact_profiles import contact_profiles
from ._coverage import coverage
from ._parse_regions import parse_regions
from ._pseudobulk import pseudobulk
from ._sequences import sequences
from ._tf_context import tf_context

__all__ = [
    "binarize",
    "combine_contacts",
    "contact_profiles",
    "coverage",
    "parse_regions",
    "pseudobulk",
    "sequences",
    "tf_context",
]
