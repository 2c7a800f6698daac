from diffbio_sc.genome.signal import Signal, SignalArrays

__all__ = ["Signal", "SignalArrays"]
