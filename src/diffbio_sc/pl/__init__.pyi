from ._chromatin_states import chromatin_states
from ._combine_features import combine_features
from ._contact_decay import contact_decay
from ._contacts import contacts
from ._contextual import contextual
from ._deconvolution import deconvolution
from ._differential_contacts import differential_contacts
from ._logo import logo
from ._multiomics_vae import multiomics_vae
from ._peaks import peaks
from ._pileup import pileup
from ._saddle import saddle
from ._spatial_genes import spatial_genes
from ._state_enrichment import state_enrichment
from ._state_reproducibility import state_reproducibility

__all__ = [
    "chromatin_states",
    "combine_features",
    "contact_decay",
    "contacts",
    "contextual",
    "deconvolution",
    "differential_contacts",
    "logo",
    "multiomics_vae",
    "peaks",
    "pileup",
    "saddle",
    "spatial_genes",
    "state_enrichment",
    "state_reproducibility",
]
