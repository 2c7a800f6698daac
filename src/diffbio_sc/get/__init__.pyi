from ._compartments import compartments
from ._contacts import contacts
from ._differential_contacts import differential_contacts
from ._expected import expected
from ._insulation import insulation
from ._loops import loops
from ._multiomics_vae import multiomics_vae
from ._peaks import peaks
from ._proportions import proportions
from ._spatial_genes import spatial_genes
from ._tads import tads

__all__ = [
    "compartments",
    "contacts",
    "differential_contacts",
    "expected",
    "insulation",
    "loops",
    "multiomics_vae",
    "peaks",
    "proportions",
    "spatial_genes",
    "tads",
]
