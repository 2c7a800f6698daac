from ._attribution_arrays import attribution_arrays
from ._attributions import attributions
from ._chromatin_state_model import chromatin_state_model
from ._chromatin_states import chromatin_states
from ._combine_features import combine_features
from ._compartments import compartments
from ._contacts import contacts
from ._contextual import contextual
from ._crested import crested
from ._deconvolution import deconvolution
from ._differential_contacts import differential_contacts
from ._expected import expected
from ._insulation import insulation
from ._loops import loops
from ._multiomics_vae import multiomics_vae
from ._peaks import peaks
from ._spatial_genes import spatial_genes
from ._state_enrichment import state_enrichment
from ._state_reproducibility import state_reproducibility
from ._tads import tads

__all__ = [
    "attribution_arrays",
    "attributions",
    "chromatin_state_model",
    "chromatin_states",
    "compartments",
    "contacts",
    "contextual",
    "crested",
    "deconvolution",
    "differential_contacts",
    "expected",
    "insulation",
    "loops",
    "multiomics_vae",
    "peaks",
    "spatial_genes",
    "state_enrichment",
    "state_reproducibility",
    "tads",
    "combine_features",
]
