from . import chains, counts, genome, latent, spatial

__all__ = [
    "chains",
    "counts",
    "genome",
    "latent",
    "spatial",
]
