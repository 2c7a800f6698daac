from ._balance import balance
from ._compartments import compartments
from ._contacts import contacts
from ._deconvolve import deconvolve
from ._expected import expected
from ._insulation import insulation
from ._loops import loops
from ._merge_peaks import merge_peaks
from ._multiomics_encode import multiomics_encode
from ._multiomics_impute import multiomics_impute
from ._multiomics_score import multiomics_score
from ._multiomics_vae import multiomics_vae
from ._peaks import peaks
from ._spatial_genes import spatial_genes
from ._spatial_patterns import spatial_patterns
from ._train_peaks import train_peaks

__all__ = [
    "balance",
    "compartments",
    "contacts",
    "deconvolve",
    "expected",
    "insulation",
    "loops",
    "merge_peaks",
    "multiomics_encode",
    "multiomics_impute",
    "multiomics_score",
    "multiomics_vae",
    "peaks",
    "spatial_genes",
    "spatial_patterns",
    "train_peaks",
]
