from ._attributions import attributions
from ._balance import balance
from ._call_peaks import call_peaks
from ._chromatin_states import chromatin_states
from ._combine_features import combine_features
from ._compartments import compartments
from ._contacts import contacts
from ._contextual import contextual
from ._contextual_ablation import contextual_ablation
from ._contextual_predict import contextual_predict
from ._coverage_stats import coverage_stats
from ._deconvolve import deconvolve
from ._differential_contacts import differential_contacts
from ._expected import expected
from ._insulation import insulation
from ._loops import loops
from ._match_states import match_states
from ._merge_loops import merge_loops
from ._merge_peaks import merge_peaks
from ._multiomics_encode import multiomics_encode
from ._multiomics_impute import multiomics_impute
from ._multiomics_score import multiomics_score
from ._multiomics_vae import multiomics_vae
from ._peaks import peaks
from ._pileup import pileup
from ._saddle import saddle
from ._select_n_states import select_n_states
from ._spatial_genes import spatial_genes
from ._spatial_patterns import spatial_patterns
from ._state_enrichment import state_enrichment
from ._state_reproducibility import state_reproducibility
from ._train_peaks import train_peaks

__all__ = [
    "attributions",
    "balance",
    "call_peaks",
    "chromatin_states",
    "compartments",
    "contacts",
    "contextual",
    "contextual_ablation",
    "contextual_predict",
    "coverage_stats",
    "deconvolve",
    "differential_contacts",
    "expected",
    "insulation",
    "loops",
    "merge_loops",
    "match_states",
    "merge_peaks",
    "multiomics_encode",
    "multiomics_impute",
    "multiomics_score",
    "multiomics_vae",
    "peaks",
    "pileup",
    "saddle",
    "select_n_states",
    "spatial_genes",
    "spatial_patterns",
    "state_enrichment",
    "state_reproducibility",
    "train_peaks",
    "combine_features",
]
