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
    for column in ("start", "end", "peak"):
        np.testing.assert_array_equal(ours[column], theirs[column])
    np.testing.assert_allclose(ours["signalValue"], theirs["signalValue"], rtol=2e-5)
    np.testing.assert_allclose(ours["pValue"], theirs["pValue"], rtol=2e-5)
    np.testing.assert_allclose(ours["qValue"], theirs["qValue"], rtol=2e-5)
