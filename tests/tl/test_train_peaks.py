from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import diffbio_sc as dbio

WIDTH = 50


@pytest.fixture(scope="module")
def _labelled():
    """Two samples with places twice as high as the rest, which the expert calls peaks and the default does not."""
    rng = np.random.default_rng(0)
    start = np.arange(0, 40_000, WIDTH)
    mean = np.full((2, len(start)), 12.0)
    places = [8000, 20_000, 31_000]
    for place in places:
        mean[:, (start >= place) & (start < place + 2000)] *= 2.2
    adata = ad.AnnData(
        rng.poisson(mean).astype(np.float32),
        obs=pd.DataFrame(index=["x", "y"]),
        var=pd.DataFrame({"chrom": "chr1", "start": start, "end": start + WIDTH}, index=start.astype(str)),
    )
    rows = []
    for sample in ("x", "y"):
        for place in places:
            rows += [
                (sample, "chr1", place - 1000, place + 900, "peakStart"),
                (sample, "chr1", place + 1100, place + 3000, "peakEnd"),
            ]
        rows += [(sample, "chr1", 1000, 5000, "noPeaks"), (sample, "chr1", 14_000, 18_000, "noPeaks")]
        rows += [(sample, "chr1", 7000, 11_000, "peaks")]
    return adata, pd.DataFrame(rows, columns=["sample", "chrom", "start", "end", "annotation"])


@pytest.fixture
def labelled(_labelled):
    return _labelled[0].copy(), _labelled[1].copy()


def errors(adata, labels):
    number = 0
    for row in labels.itertuples():
        table = adata.uns["peaks"]["tables"][row.sample]
        begins = ((table["start"] >= row.start) & (table["start"] < row.end)).sum()
        ends = ((table["end"] > row.start) & (table["end"] <= row.end)).sum()
        overlaps = ((table["start"] < row.end) & (table["end"] > row.start)).any()
        good = {"noPeaks": not overlaps, "peaks": overlaps, "peakStart": begins == 1, "peakEnd": ends == 1}
        number += not good[row.annotation]
    return number


def test_labels_teach_what_a_peak_is(labelled, tmp_path):
    adata, labels = labelled
    dbio.tl.peaks(adata)
    before = errors(adata, labels)
    assert before >= 8
    caller = dbio.tl.train_peaks(adata, labels, steps=60, learning_rate=0.1)
    dbio.tl.peaks(adata, operator=caller)
    assert errors(adata, labels) <= 2
    assert adata.layers["peak_scores"].shape == adata.shape
    caller.save(tmp_path / "caller.npz")
    loaded = type(caller).load(tmp_path / "caller.npz")
    again = adata.copy()
    dbio.tl.peaks(again, operator=loaded)
    np.testing.assert_allclose(again.layers["peak_scores"], adata.layers["peak_scores"], atol=1e-6)
    narrow = ad.AnnData(adata.X[:, :100], obs=adata.obs, var=adata.var[:100].assign(end=lambda v: v["start"] + 25))
    with pytest.raises(ValueError, match="made for bins of 50 bp"):
        dbio.tl.peaks(narrow, operator=caller)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda labels: labels.drop(columns="chrom"), KeyError, "labels has no columns"),
        (lambda labels: labels[:0], ValueError, "nothing to train on"),
        (lambda labels: labels.replace("peaks", "peak"), ValueError, "annotation.*found \\['peak'\\]"),
        (lambda labels: labels.replace("x", "z"), KeyError, "samples that adata does not have: \\['z'\\]"),
        (lambda labels: labels.replace("chr1", "chr2"), ValueError, "lies on no bins"),
        (lambda labels: labels.assign(end=labels["start"]), ValueError, "start < end"),
        (lambda labels: labels.assign(start=1010, end=1040), ValueError, "chr1:1010-1040 is shorter than a bin"),
    ],
)
def test_bad_labels_are_named(labelled, change, error, message):
    adata, labels = labelled
    with pytest.raises(error, match=message):
        dbio.tl.train_peaks(adata, change(labels))


def test_training_that_does_not_carry_over_keeps_the_start(labelled, monkeypatch, caplog):
    """A fit that ends where everything is a peak: the caller that comes back is the one from before, and says so."""
    from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller

    adata, labels = labelled
    real = DifferentiablePeakCaller.fit

    def fit(self, data, **options):
        report = real(self, data, **{**options, "steps": 1})
        self.log_background[...] = self.log_background[...] - 3.0
        return report

    monkeypatch.setattr(DifferentiablePeakCaller, "fit", fit)
    quiet = labels[labels["annotation"] == "noPeaks"]
    with caplog.at_level("WARNING"):
        caller = dbio.tl.train_peaks(adata, quiet)
    assert "training on the rest left 4 wrong, the start 0" in caplog.text
    for name, value in (("log_excess", np.log(4.0)), ("log_enter", np.log(3.0)), ("log_background", 0.0)):
        np.testing.assert_allclose(float(getattr(caller, name)[...]), value, atol=1e-6)
    dbio.tl.peaks(adata, operator=caller)
    assert errors(adata, quiet) == 0


def test_tracks_of_two_lengths_are_trained_as_each_is_called(labelled):
    """A shorter track is repeated to the length of the longer: its background stays the one of the track alone."""
    from flax import nnx

    from diffbio_sc.engines.peak_training import LabelledTrack, measure_surroundings, stack_tracks
    from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller, PeakCallerConfig

    long, short = labelled[0].X[0], labelled[0].X[1][:300]
    nothing = np.zeros(1, np.int64)
    tracks = [LabelledTrack("x", row, None, nothing, nothing, nothing + 4) for row in (long, short)]
    caller = DifferentiablePeakCaller(PeakCallerConfig(num_filters=0, bin_width=WIDTH), rngs=nnx.Rngs(0))
    stacked = stack_tracks(tracks, [measure_surroundings(track, caller.config) for track in tracks])
    np.testing.assert_array_equal(stacked["signal"][1][:600], np.tile(short, 2))
    alone = caller({"signal": short})["peak_background"]
    np.testing.assert_allclose(stacked["background"][1][:600], np.tile(alone, 2), rtol=1e-6)
    together = caller({name: stacked[name] for name in ("signal", "background", "broad")})["peak_logits"][1]
    inner = slice(0, 250)  # beyond, the copy that follows is seen through the chain
    np.testing.assert_allclose(together[inner], caller({"signal": short})["peak_logits"][inner], atol=1e-2)


@pytest.mark.parametrize("controlled", [False, True])
@pytest.mark.parametrize("mode", ["auto", "narrow", "broad"])
def test_surroundings_measured_on_the_host_are_those_that_the_operator_finds(mode, controlled):
    """Of a track of domains, of one of peaks, and of one between them, which gets a share of broad settings."""
    from flax import nnx

    from diffbio_sc.engines.peak_training import LabelledTrack, measure_surroundings
    from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller, PeakCallerConfig

    rng, nothing = np.random.default_rng(0), np.zeros(1, np.int64)
    config = PeakCallerConfig(num_filters=0, bin_width=100, positions_per_read=2.0, mode=mode)
    caller = DifferentiablePeakCaller(config, rngs=nnx.Rngs(0))
    domains = np.repeat([1.0, 6.0, 1.0, 6.0], 500)
    peaks = np.where(np.arange(2000) % 250 < 5, 20.0, 1.0)
    tracks = rng.poisson(np.stack([domains, peaks, np.repeat([2.0, 5.05, 2.0, 5.05], 500)])).astype(np.float32)
    control = rng.poisson(0.4 + 0.2 * peaks, tracks.shape).astype(np.float32) if controlled else None
    data = {"signal": tracks} | ({"control": control} if controlled else {})
    found = [
        measure_surroundings(
            LabelledTrack("x", row, None if control is None else control[number], nothing, nothing, nothing), config
        )
        for number, row in enumerate(tracks)
    ]
    together = caller(data)
    np.testing.assert_allclose([one.background for one in found], together["peak_background"], rtol=1e-4)
    given = {"background": np.stack([one.background for one in found]), "broad": np.array([one.broad for one in found])}
    again = caller({"signal": tracks, **{name: value.astype(np.float32) for name, value in given.items()}})
    np.testing.assert_allclose(again["peak_logits"], together["peak_logits"], rtol=1e-3, atol=1e-2)
    if mode == "auto":
        assert found[0].broad > 0.99
        assert found[1].broad < 0.01
        assert 0.05 < found[2].broad < 0.95


def test_other_bad_arguments_are_named(labelled):
    adata, labels = labelled
    gap = adata[:, np.r_[0:150, 300:800]].copy()
    with pytest.raises(ValueError, match="across a gap|on no bins"):
        dbio.tl.train_peaks(gap, labels.assign(start=5000, end=20_000))
    with pytest.raises(ValueError, match="one table for each object"):
        dbio.tl.train_peaks([adata, adata], labels)
    with pytest.raises(KeyError, match="control 'input' is no row"):
        dbio.tl.train_peaks(adata, labels, control="input")
    with pytest.raises(TypeError, match="labels must be a table"):
        dbio.tl.train_peaks(adata, None)
