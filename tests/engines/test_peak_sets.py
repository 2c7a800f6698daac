"""Merging and blacklist cutting with the codes of missing values, and one place where they stand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio
from diffbio_sc.engines.peak_sets import count_support, cut_at_regions
from diffbio_sc.genome.intervals import Intervals
from diffbio_sc.genome.peak_table import NARROWPEAK, PeakTable


def peaks(**changes):
    columns = {
        "chrom": ["chr1"] * 3,
        "start": [1000, 5000, 9000],
        "end": [1400, 5400, 9400],
        "peak": [100, 50, 300],
        "qValue": [5.0, 9.0, 2.0],
        "pValue": [7.0, 11.0, 4.0],
        "signalValue": [3.0, 8.0, 2.0],
    }
    return pd.DataFrame({**columns, **changes})


@pytest.mark.parametrize("missing", [-1, np.nan, None])
def test_peaks_without_a_summit_are_centred_on_their_middle(missing):
    merged = dbio.tl.merge_peaks({"a": peaks(peak=[100, missing, 300])}, width=501)
    assert merged["start"].tolist() == [1100 - 250, 5200 - 250, 9300 - 250]
    assert merged["peak"].tolist() == [250, 250, 250]


def test_peaks_without_a_score_come_last_and_their_codes_stay_codes():
    table = peaks(qValue=[np.nan, 9.0, -1.0], pValue=[np.nan, 11.0, -1.0])
    near = pd.concat([table, table.assign(start=table["start"] + 200, end=table["end"] + 200, qValue=1.0)])
    merged = dbio.tl.merge_peaks({"a": near}, width=501)
    # Where a peak with a score overlaps one without, the one with it is kept.
    assert merged["start"].tolist() == [1300 - 250, 5050 - 250, 9500 - 250]
    alone = dbio.tl.merge_peaks({"a": table}, width=501)
    assert alone["qValue"].tolist() == [-1.0, 9.0, -1.0]
    assert alone["pValue"].tolist() == [-1.0, 11.0, -1.0]
    assert np.isfinite(alone["score"]).all()
    assert alone["score"].idxmax() == 1


def test_window_wider_than_a_contig_ends_with_it():
    small = pd.DataFrame({"chrom": ["tiny"], "start": [100], "end": [200], "peak": [50], "qValue": [4.0]})
    merged = dbio.tl.merge_peaks({"a": small}, width=501, chrom_sizes={"tiny": 300})
    assert merged[["start", "end", "peak"]].to_numpy().tolist() == [[0, 300, 150]]


def test_sizes_may_be_the_name_of_an_assembly_and_lists_are_refused():
    end = 248_956_422  # of chr1 of hg38
    table = pd.DataFrame({"chrom": ["chr1"], "start": [end - 100], "end": [end], "peak": [60], "qValue": [4.0]})
    assert dbio.tl.merge_peaks({"a": table}, chrom_sizes="hg38")["end"].tolist() == [end]
    with pytest.raises(TypeError, match="dict of tables by name of the group.*found list"):
        dbio.tl.merge_peaks([table])
    with pytest.raises(ValueError, match="the peaks of 'a' must have a value in column 'start' of every row"):
        dbio.tl.merge_peaks({"a": table.assign(start=np.nan)})


def test_blacklist_cuts_peaks_without_a_summit_by_their_middle():
    regions = Intervals.from_arrays(["chr1", "chr1"], [1150, 5300], [1250, 5350], name="regions")
    table = PeakTable.from_frame(peaks(peak=[-1, -1, 300]))
    cut = cut_at_regions(table, regions, "the peaks")
    # The middle of the first, 1200, lies in a region; the second is cut off after its middle and keeps its code.
    assert cut["start"].tolist() == [5000, 9000]
    assert cut["end"].tolist() == [5300, 9400]
    assert cut["peak"].tolist() == [-1, 300]


def test_a_table_has_the_columns_and_types_that_are_defined_once(tmp_path):
    empty, some = PeakTable.empty().to_frame(), PeakTable.from_frame(peaks()).to_frame()
    assert list(empty.columns) == list(some.columns)
    assert (empty.dtypes == some.dtypes).all()
    assert tuple(some.columns[:10]) == NARROWPEAK
    assert some["score"].tolist() == [0, 0, 0]
    assert some["strand"].tolist() == ["."] * 3
    assert len(set(map(id, some["strand"]))) == 1  # one text, not one for each row
    dbio.io.write_narrowpeak(some, tmp_path / "x.narrowPeak")
    back = dbio.io.read_narrowpeak(tmp_path / "x.narrowPeak")
    pd.testing.assert_frame_equal(back[["start", "end", "peak"]], some[["start", "end", "peak"]])
    with pytest.raises(KeyError, match="the table has no columns"):
        PeakTable.from_frame(peaks().drop(columns="end"))
    with pytest.raises(ValueError, match="start < end, found 1 rows"):
        PeakTable.from_frame(peaks(end=[1400, 5000, 9400]))


def test_columns_of_a_frame_are_its_own():
    shared = np.array([3.0, 8.0, 2.0])
    table = PeakTable.from_frame(peaks()).replace(signalValue=shared, fragments=shared)
    frame = table.to_frame()
    frame.loc[0, "signalValue"] = -7.0
    assert frame["fragments"].tolist() == table["signalValue"].tolist() == [3.0, 8.0, 2.0]


def test_replicates_count_by_their_places_as_by_their_tables():
    table = PeakTable.from_frame(peaks())
    others = [table.take([0, 2]), PeakTable.from_frame(peaks(chrom=["chr2", "chr1", "chr1"])), table.take([0])]
    found = count_support(table, [other.places() for other in others])
    assert found["n_replicates"].tolist() == count_support(table, others)["n_replicates"].tolist() == [2, 1, 2]
    assert set(others[0].places()) == {"chrom", "start", "end"}


def test_a_summit_at_the_first_base_after_a_region_is_outside_it():
    """Regions are half-open: 1000 to 1100 ends where the summit 1100 begins, and cuts the peak there."""
    table = PeakTable.from_frame(peaks())
    region = Intervals.from_arrays(["chr1"], [1000], [1100])
    cut = cut_at_regions(table, region, "peaks")
    assert cut["start"].tolist() == [1100, 5000, 9000]
    assert cut["peak"].tolist() == [0, 50, 300]
    assert len(cut_at_regions(table, Intervals.from_arrays(["chr1"], [1000], [1101]), "peaks")) == 2


def test_codes_of_missing_scores_are_no_part_of_a_groups_total():
    """Peaks rank by their share of the group: 2 of 2 + 2 is less than 3 of 3 + 2, whatever -1 stands beside them."""
    a = peaks(qValue=[-1.0, 2.0, 2.0])
    b = peaks(start=[5100, 20_000, 30_000], end=[5500, 20_400, 30_400], qValue=[3.0, 2.0, -1.0])
    merged = dbio.tl.merge_peaks({"a": a, "b": b}, width=501)
    near = merged[(merged["start"] > 4000) & (merged["start"] < 6000)]
    assert near["start"].tolist() == [5100 + 100 - 250]
