"""The access layer: the only place that takes matrices and tables out of AnnData and writes results back."""

from diffbio_sc._anndata.matrix import read_counts
from diffbio_sc._anndata.names import align_names, require_unique
from diffbio_sc._anndata.results import check_key, make_record, storable_names, write_results
from diffbio_sc._anndata.tables import read_coordinates, read_covariates, read_labels, read_numbers, read_slides
from diffbio_sc.blocks.matrix import CountMatrix

__all__ = [
    "CountMatrix",
    "align_names",
    "check_key",
    "make_record",
    "read_coordinates",
    "read_counts",
    "read_covariates",
    "read_labels",
    "read_numbers",
    "read_slides",
    "require_unique",
    "storable_names",
    "write_results",
]
