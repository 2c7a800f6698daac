from ._contact_cells import ContactCells
from ._genome_types import IntervalArrays, Intervals, Signal, SignalArrays, read_chrom_sizes
from ._read_bam import read_bam
from ._read_bed import read_bed
from ._read_bedgraph import read_bedgraph
from ._read_bedpe import read_bedpe
from ._read_bigwig import read_bigwig
from ._read_cool import read_cool
from ._read_fragments import read_fragments
from ._read_hic import read_hic
from ._read_intervals import read_intervals
from ._read_narrowpeak import read_narrowpeak
from ._read_scool import read_scool
from ._write_bed import write_bed
from ._write_bigwig import write_bigwig
from ._write_cool import write_cool
from ._write_narrowpeak import write_narrowpeak

__all__ = [
    "ContactCells",
    "IntervalArrays",
    "Intervals",
    "Signal",
    "SignalArrays",
    "read_bam",
    "read_bed",
    "read_bedgraph",
    "read_bedpe",
    "read_bigwig",
    "read_chrom_sizes",
    "read_cool",
    "read_fragments",
    "read_hic",
    "read_intervals",
    "read_narrowpeak",
    "read_scool",
    "write_bed",
    "write_bigwig",
    "write_cool",
    "write_narrowpeak",
]
