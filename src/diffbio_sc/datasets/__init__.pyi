from ._pbmc_tissue import pbmc_tissue

__all__ = ["pbmc_tissue"]
