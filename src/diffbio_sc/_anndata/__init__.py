"""The access layer: the only place that takes matrices and tables out of AnnData and writes results back."""

from diffbio_sc._anndata.matrix import read_counts, require_anndata, survey_counts
from diffbio_sc._anndata.names import align_names, require_unique
from diffbio_sc._anndata.reference import Reference, read_reference
from diffbio_sc._anndata.results import (
    check_key,
    make_record,
    prefix_of,
    storable_names,
    write_results,
)
from diffbio_sc._anndata.spatial_test import (
    covariates_given,
    covariates_of_test,
    read_test_covariates,
    result_column,
)
from diffbio_sc._anndata.tables import (
    read_cell_numbers,
    read_column,
    read_coordinates,
    read_covariates,
    read_labels,
    read_numbers,
    read_slides,
)
from diffbio_sc.blocks.matrix import CountMatrix

__all__ = [
    "CountMatrix",
    "Reference",
    "align_names",
    "check_key",
    "make_record",
    "prefix_of",
    "read_cell_numbers",
    "read_column",
    "read_coordinates",
    "read_counts",
    "read_covariates",
    "read_labels",
    "read_numbers",
    "read_reference",
    "read_slides",
    "require_anndata",
    "require_unique",
    "storable_names",
    "survey_counts",
    "covariates_given",
    "covariates_of_test",
    "read_test_covariates",
    "result_column",
    "write_results",
]
