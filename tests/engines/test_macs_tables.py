"""``mode="macs"`` against tables that MACS3 itself wrote; ``tests/data/macs/make_expected.sh`` says how."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import diffbio_sc as dbio

FOLDER = Path(__file__).parent.parent / "data" / "macs"


@pytest.mark.parametrize(
    ("expected", "treatment", "control", "options"),
    [
        ("equal_control", "treatment.bedpe.gz", "control.bedpe.gz", {}),
        # The treatment is the larger of the two: MACS3 scales it down to the control.
        ("shallow_control", "treatment.bedpe.gz", "shallow_control.bedpe.gz", {}),
        ("shallow_control_reads", "treatment.bed.gz", "shallow_control.bed.gz", {"fragment_length": 200}),
        ("no_control", "treatment.bedpe.gz", None, {}),
    ],
)
def test_regions_summits_and_scores_are_those_of_macs3(expected, treatment, control, options):
    theirs = dbio.io.read_narrowpeak(FOLDER / f"{expected}.narrowPeak")
    control = None if control is None else FOLDER / control
    ours = dbio.tl.call_peaks(FOLDER / treatment, control=control, mode="macs", genome_size=3e6, **options)
    assert len(theirs) > 40
    compare(ours, theirs)


def compare(ours, theirs):
    for column in ("start", "end", "peak"):
        np.testing.assert_array_equal(ours[column], theirs[column])
    np.testing.assert_allclose(ours["signalValue"], theirs["signalValue"], rtol=2e-5)
    np.testing.assert_allclose(ours["pValue"], theirs["pValue"], rtol=2e-5)
    np.testing.assert_allclose(ours["qValue"], theirs["qValue"], rtol=2e-5)


def test_counted_fragments_are_those_of_macs3():
    """Gaps and shortest peaks go by the mean length of the lines, pile-up and background by their counts."""
    fragments = dbio.io.read_fragments(FOLDER / "counted.frag.gz", use_counts=True)
    compare(
        dbio.tl.call_peaks(fragments, mode="macs", genome_size=3e7),
        dbio.io.read_narrowpeak(FOLDER / "counted.narrowPeak"),
    )


@pytest.mark.data
def test_counted_fragments_of_the_10x_test_set_are_those_of_macs3(data_folder):
    """The table that MACS3 keeps of its own test set, 1,455 peaks."""
    folder = data_folder / "peaks" / "macs"
    fragments = dbio.io.read_fragments(folder / "test.fragments.tsv.gz", use_counts=True)
    ours = dbio.tl.call_peaks(fragments, mode="macs", genome_size=2_913_022_398)
    assert len(ours) == 1455
    compare(ours, dbio.io.read_narrowpeak(folder / "expected_run_callpeak_frag_peaks.narrowPeak"))
