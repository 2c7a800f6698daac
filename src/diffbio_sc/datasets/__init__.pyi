from ._pbmc_tissue import pbmc_tissue
