from ._contact_cells import ContactCells
from ._genome_types import IntervalArrays, Intervals, Signal, SignalArrays, read_chrom_sizes
from ._read_bam import read_bam
from ._read_bed import read_bed
from ._read_bedgraph import read_bedgraph
from ._read_bedpe import read_bedpe
from ._read_bigwig import read_bigwig
from ._read_chromhmm_binary import read_chromhmm_binary
from ._read_chromhmm_model import read_chromhmm_model
from ._read_contextual_model import read_contextual_model
from ._read_cool import read_cool
from ._read_fragments import read_fragments
from ._read_hic import read_hic
from ._read_intervals import read_intervals
from ._read_narrowpeak import read_narrowpeak
from ._read_regions import read_regions
from ._read_scool import read_scool
from ._read_segments import read_segments
from ._write_bed import write_bed
from ._write_bigwig import write_bigwig
from ._write_chromhmm_binary import write_chromhmm_binary
from ._write_chromhmm_model import write_chromhmm_model
from ._write_contextual_model import write_contextual_model
from ._write_cool import write_cool
from ._write_narrowpeak import write_narrowpeak
from ._write_segments import write_segments

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
    "read_chromhmm_binary",
    "read_chromhmm_model",
    "read_contextual_model",
    "read_cool",
    "read_fragments",
    "read_hic",
    "read_intervals",
    "read_narrowpeak",
    "read_regions",
    "read_scool",
    "read_segments",
    "write_bed",
    "write_bigwig",
    "write_chromhmm_binary",
    "write_chromhmm_model",
    "write_contextual_model",
    "write_cool",
    "write_narrowpeak",
    "write_segments",
]
