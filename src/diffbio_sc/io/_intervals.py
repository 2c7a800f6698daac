from diffbio_sc.genome.intervals import IntervalArrays, Intervals

__all__ = ["IntervalArrays", "Intervals"]
