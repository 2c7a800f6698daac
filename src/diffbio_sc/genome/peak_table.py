"""What a table of peaks is: its columns, their types, and the codes of what is missing.

The first ten columns are those of the narrowPeak format: positions are 0-based and half-open, ``pValue`` and ``qValue``
are -log10, ``peak`` is the summit as an offset from ``start``. The format has codes for what is not known: ``.`` for a
name or strand, 0 for a score, -1 for everything else. Further columns follow; unknown numbers among them are NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffbio_sc._checks import require_columns
from diffbio_sc.genome.overlap import Regions, chromosome_codes

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NARROWPEAK", "PEAK_COLUMNS", "PeakColumn", "PeakTable"]


class PeakColumn(NamedTuple):
    """One column: its name, its type, and the code of a missing value (None where a value is needed)."""

    name: str
    kind: type
    missing: Any


PEAK_COLUMNS = (
    PeakColumn("chrom", object, None),
    PeakColumn("start", np.int64, None),
    PeakColumn("end", np.int64, None),
    PeakColumn("name", object, "."),
    PeakColumn("score", np.int64, 0),
    PeakColumn("strand", object, "."),
    PeakColumn("signalValue", np.float64, -1.0),
    PeakColumn("pValue", np.float64, -1.0),
    PeakColumn("qValue", np.float64, -1.0),
    PeakColumn("peak", np.int64, -1),
    PeakColumn("fold", np.float64, np.nan),
    PeakColumn("log_odds", np.float64, np.nan),
    PeakColumn("fragments", np.float64, np.nan),
    PeakColumn("expected", np.float64, np.nan),
    PeakColumn("mark", object, "."),
)
NARROWPEAK = tuple(column.name for column in PEAK_COLUMNS[:10])

_NEEDED = tuple(column.name for column in PEAK_COLUMNS if column.missing is None)
_SCORES = ("score", "signalValue", "pValue", "qValue")


def _filled(number: int, value: Any, kind: type) -> np.ndarray:
    """One value so often; of text one object, where ``np.full`` makes one for each row."""
    column = np.empty(number, kind)
    column.fill(value)
    return column


class PeakTable:
    """Peaks as arrays of equal length, by the names of the columns.

    Parameters
    ----------
    columns
        Values of the columns, ``chrom``, ``start`` and ``end`` at least. Those of :data:`PEAK_COLUMNS` that are not
        given hold the codes of missing values; others are kept as they are.
    """

    def __init__(self, columns: Mapping[str, Any]):
        number = len(columns["start"])
        self.columns: dict[str, np.ndarray] = {}
        for name, kind, missing in PEAK_COLUMNS:
            if name in columns:
                self.columns[name] = np.asarray(columns[name], dtype=kind)
            else:
                self.columns[name] = _filled(number, missing, kind)
        for name, values in columns.items():
            self.columns.setdefault(name, np.asarray(values))
        wrong = [name for name, values in self.columns.items() if len(values) != number]
        if wrong:
            raise ValueError(f"columns of peaks must have {number} values, found another number in {wrong}.")

    @classmethod
    def empty(cls) -> PeakTable:
        """No peaks."""
        return cls({name: [] for name in _NEEDED})

    @classmethod
    def from_chain(
        cls, chromosomes: Sequence[str], peaks: Any, log10_q: np.ndarray, *, prefix: str = "", mark: str = "."
    ) -> PeakTable:
        """Peaks of :class:`~diffbio_sc.numerics.genome.chain_calls.ChainPeaks`, with -log10 q, in their order."""
        number = len(log10_q)
        names = np.asarray(chromosomes, dtype=object)
        return cls(
            {
                "chrom": names[peaks.sequence] if number else np.empty(0, object),
                "start": peaks.start,
                "end": peaks.end,
                "name": [f"{prefix}peak_{index}" for index in range(1, number + 1)],
                "score": np.clip(10 * log10_q, 0, 1000).astype(np.int64),
                "signalValue": peaks.fragments,
                "pValue": peaks.log10_p,
                "qValue": log10_q,
                "peak": peaks.summit - peaks.start,
                "fold": (np.asarray(peaks.height, np.float64) + 1) / (np.asarray(peaks.background, np.float64) + 1),
                "log_odds": peaks.log_odds,
                "fragments": peaks.fragments,
                "expected": peaks.expected,
                "mark": _filled(number, mark, object),
            }
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, name: str = "the table") -> PeakTable:
        """Peaks of a table, whose missing values (NaN, None) become codes.

        Raises
        ------
        KeyError
            If ``chrom``, ``start`` or ``end`` is missing; ``name`` says of what.
        ValueError
            If one of these holds a missing value, or an end is not after its start.
        """
        require_columns(frame, _NEEDED, name)
        columns = {}
        for column in frame.columns:
            values = frame[column]
            known = next((spec for spec in PEAK_COLUMNS if spec.name == column), None)
            absent = values.isna().to_numpy()
            if absent.any() and known is not None:
                if known.missing is None:
                    raise ValueError(f"{name} must have a value in column {column!r} of every row, found NaN.")
                values = values.astype(object).where(~absent, known.missing)
            columns[str(column)] = values.to_numpy() if known is None else values.to_numpy().astype(known.kind)
        table = cls(columns)
        bad = np.flatnonzero(table["end"] <= table["start"])
        if len(bad):
            first = {key: table[key][bad[0]] for key in _NEEDED}
            raise ValueError(f"{name} must have start < end, found {len(bad)} rows that do not; the first is {first}.")
        return table

    def to_frame(self) -> pd.DataFrame:
        """Return the table as a pandas one."""
        import pandas as pd

        # Copied once, where a table of arrays is copied twice; texts stay objects, whatever pandas would make of them.
        columns = {name: pd.Series(values.copy(), dtype=values.dtype) for name, values in self.columns.items()}
        return pd.DataFrame(columns, copy=False)

    def __len__(self) -> int:
        """Number of peaks."""
        return len(self.columns["start"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def take(self, rows: Any) -> PeakTable:
        """The given rows, a mask or positions."""
        return PeakTable({name: values[rows] for name, values in self.columns.items()})

    def replace(self, **columns: Any) -> PeakTable:
        """The table with other values of columns, or further columns."""
        return PeakTable({**self.columns, **columns})

    def chromosomes(self) -> list[str]:
        """Names in order of appearance."""
        return list(dict.fromkeys(map(str, self["chrom"])))

    def summits(self) -> np.ndarray:
        """Positions of the summits; the middle of a peak where its summit is not known."""
        middle = (self["start"] + self["end"]) // 2
        return np.where(self["peak"] >= 0, self["start"] + self["peak"], middle)

    def scores(self, column: str) -> np.ndarray:
        """Values of a column that ranks peaks; NaN where they are not known."""
        values = np.asarray(self[column], np.float64)
        return np.where(values < 0, np.nan, values) if column in _SCORES else values

    def places(self) -> dict[str, np.ndarray]:
        """Chromosome, start and end alone, a tenth of what the table takes."""
        return {name: self.columns[name] for name in _NEEDED}

    def overlapped_by(self, other: PeakTable | Mapping[str, np.ndarray]) -> np.ndarray:
        """Whether each peak overlaps one of another table, or of its :meth:`places`."""
        mine, theirs = chromosome_codes(self["chrom"], other["chrom"])
        return Regions(theirs, other["start"], other["end"]).overlaps(mine, self["start"], self["end"])
