"""What readers return, beside the readers."""

from diffbio_sc.genome.chrom_sizes import read_chrom_sizes
from diffbio_sc.genome.intervals import IntervalArrays, Intervals
from diffbio_sc.genome.signal import Signal, SignalArrays

__all__ = ["IntervalArrays", "Intervals", "Signal", "SignalArrays", "read_chrom_sizes"]
