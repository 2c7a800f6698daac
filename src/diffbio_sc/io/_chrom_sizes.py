from diffbio_sc.genome.chrom_sizes import read_chrom_sizes

__all__ = ["read_chrom_sizes"]
