"""Samples that come in parts: the steps are those of the documented order, whoever makes the parts."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pandas as pd
import pytest
import scipy.sparse as sp

from diffbio_sc.numerics.counts.sparse_rows import scatter_dense
from diffbio_sc.numerics.padding import bucket_size
from diffbio_sc.training import Adam, BatchSource, Checkpoint, IteratorSource, batches, streams, train

SGD = optax.sgd(0.02)


class InPieces(BatchSource):
    """Arrays, some rows after the other."""

    def __init__(self, data, part_rows, *, reads_ahead=False):
        self.data, self.part_rows, self.reads_ahead = data, part_rows, reads_ahead
        self.size = next(iter(data.values())).shape[0]

    def parts(self, epoch):
        for start in range(0, self.size, self.part_rows):
            yield self.rooms.arranged({key: value[start : start + self.part_rows] for key, value in self.data.items()})


def test_one_part_is_training_in_memory(make_linear, make_data):
    data, held_out = make_data(64), make_data(20, seed=1)
    options = {"batch_size": 16, "max_epochs": 5, "validation": held_out, "rng": 3, "keep_start": True}
    expected, found = make_linear(), make_linear()
    before = train(expected, data, **options)
    after = train(found, InPieces(data, 64), **options)
    np.testing.assert_array_equal(found.weights[...], expected.weights[...])
    np.testing.assert_array_equal(after.history["loss"], before.history["loss"])
    np.testing.assert_allclose(after.history["validation_loss"], before.history["validation_loss"], rtol=1e-6)


@pytest.mark.parametrize("reads_ahead", [False, True])
def test_several_parts_take_the_documented_steps(make_linear, make_data, reads_ahead):
    """70 samples in batches of 8: parts of 24, 24 and 22, the last with a short batch."""
    data = make_data(70)
    operator = make_linear()
    source = InPieces(data, 23, reads_ahead=reads_ahead)
    report = train(operator, source, optimizer=SGD, batch_size=8, max_epochs=2, rng=7)
    assert (source.part_rows, source.n_parts) == (24, 3)
    weights, intercept, expected = np.zeros(3), 0.0, []
    _, order_key, _ = jax.random.split(jax.random.key(7), 3)
    for epoch in range(2):
        losses = []
        for part in range(3):
            rows = np.arange(24 * part, min(24 * part + 24, 70))
            key = jax.random.fold_in(order_key, 3 * epoch + part)
            order = rows[np.asarray(batches.epoch_order(key, len(rows), 24))[: len(rows)]]
            for start in range(0, len(order), 8):
                chosen = order[start : start + 8]
                x, y = data["features"][chosen].astype(np.float64), data["targets"][chosen].astype(np.float64)
                error = x @ weights + intercept - y
                losses += [np.mean(error**2)] * len(chosen)
                weights = weights - 0.02 * 2 * x.T @ error / len(chosen)
                intercept -= 0.02 * 2 * error.mean()
        expected.append(np.mean(losses))
    np.testing.assert_allclose(operator.weights[...], weights, rtol=1e-5)
    np.testing.assert_allclose(report.history["loss"], expected, rtol=1e-5)


def test_rates_follow_the_steps_through_all_parts(make_linear, make_data):
    """A schedule that ends after the first part: the second changes nothing."""
    data = make_data(64)
    first, both = make_linear(), make_linear()
    steps = lambda step: 0.1 * (step < 4)  # noqa: E731
    train(
        first,
        InPieces({key: value[:32] for key, value in data.items()}, 32),
        optimizer=Adam(steps),
        batch_size=8,
        max_epochs=1,
    )
    train(both, InPieces(data, 32), optimizer=Adam(steps), batch_size=8, max_epochs=1)
    assert np.abs(first.weights[...]).min() > 0
    np.testing.assert_array_equal(both.weights[...], first.weights[...])


def test_batches_of_any_size_become_parts(make_linear, make_data):
    data, expected, found = make_data(70), make_linear(), make_linear()
    train(expected, InPieces(data, 24), optimizer=SGD, batch_size=8, max_epochs=2)

    def loader(epoch):
        cuts = [0, 1, 40, 41, 60, 70] if epoch else [0, 33, 70]
        return ({key: value[a:b] for key, value in data.items()} for a, b in zip(cuts, cuts[1:], strict=False))

    train(found, IteratorSource(loader, 70, part_rows=24), optimizer=SGD, batch_size=8, max_epochs=2)
    np.testing.assert_array_equal(found.weights[...], expected.weights[...])


def test_a_loader_of_annbatch_trains_as_arrays_do(make_linear, make_data):
    """Its batches are dicts of a sparse ``X``, a table ``obs`` and an ``index``; each iteration is an epoch."""
    data = make_data(64)

    class Loader:
        n_obs = 64

        def __iter__(self):
            for start in range(0, 64, 10):
                rows = slice(start, min(start + 10, 64))
                obs = pd.DataFrame({"target": data["targets"][rows]})
                yield {"X": sp.csr_matrix(data["features"][rows]), "obs": obs, "index": None}

    def convert(batch):
        return {"features": batch["X"].toarray(), "targets": batch["obs"]["target"]}

    loader, expected, found = Loader(), make_linear(), make_linear()
    train(expected, data, optimizer=SGD, batch_size=8, max_epochs=2)
    train(found, IteratorSource(loader, loader.n_obs, convert=convert), optimizer=SGD, batch_size=8, max_epochs=2)
    np.testing.assert_array_equal(found.weights[...], expected.weights[...])


@pytest.mark.parametrize("stratified", [False, True])
def test_sparse_batches_of_a_loader_lose_nothing(stratified, make_linear):
    """The loss sums the entries that it sees: over an epoch all of them, with the values of their cells."""
    random = np.random.default_rng(0)
    counts = sp.csr_array((random.integers(1, 400, (90, 30)) * (random.random((90, 30)) < 0.3)).astype(np.float32))
    weights = random.normal(size=90).astype(np.float32)

    def loss(operator, batch, key):
        total = (scatter_dense(batch["X"]).sum(1) * batch["weight"] * batch["sample_weight"]).sum()
        return total / batch["sample_weight"].sum() + 0.0 * operator.weights[...].sum()

    loader = [{"X": counts[start : start + 17], "weight": weights[start : start + 17]} for start in range(0, 90, 17)]
    source = IteratorSource(loader, 90, part_rows=32)
    options = {"loss": loss, "weighted": True, "stratified": stratified, "batch_size": 8, "max_epochs": 3}
    report = train(make_linear(), source, **options)
    np.testing.assert_allclose(report.history["loss"], (counts.sum(1) * weights).mean(), rtol=1e-5)


def test_parts_with_more_entries_than_those_before_have_room(make_linear):
    random = np.random.default_rng(0)
    counts = np.concatenate([random.random((40, 50)) < 0.1, random.random((40, 50)) < 0.9]).astype(np.float32) * 300
    loader = [{"X": sp.csr_array(counts)}]

    def loss(operator, batch, key):
        return scatter_dense(batch["X"]).sum() / batch["sample_weight"].sum() + 0.0 * operator.weights[...].sum()

    options = {"loss": loss, "weighted": True, "batch_size": 8, "max_epochs": 2}
    report = train(make_linear(), IteratorSource(loader, 80, part_rows=40), **options)
    np.testing.assert_allclose(report.history["loss"], counts.sum(1).mean(), rtol=1e-6)


def test_more_held_out_samples_than_a_part_take_no_room_from_the_parts(make_linear, monkeypatch):
    rng = np.random.default_rng(0)
    counts = sp.csr_array(rng.poisson(1.0, (420, 20)).astype(np.float32))
    placed, place = [], batches.place_samples

    def watched(*arguments, **options):
        result = place(*arguments, **options)
        placed.append(len(result[0]["X"].rows.data))
        return result

    def loss(operator, batch, key):
        total = (scatter_dense(batch["X"]).sum(1) * batch["sample_weight"]).sum()
        return total / batch["sample_weight"].sum() + 0.0 * operator.weights[...].sum()

    monkeypatch.setattr(batches, "place_samples", watched)
    held_out = {"X": counts[64:]}
    options = {"loss": loss, "weighted": True, "batch_size": 8, "max_epochs": 1}
    report = train(make_linear(), InPieces({"X": counts[:64]}, 32), validation=held_out, **options)
    np.testing.assert_allclose(report.history["validation_loss"], held_out["X"].sum(1).mean(), rtol=1e-6)
    assert placed[0] >= held_out["X"].nnz
    assert max(placed[1:]) < 1.3 * counts[:64].nnz / 2


@pytest.mark.parametrize("stratified", [False, True])
def test_room_is_reserved_for_the_largest_of_drawn_parts_and_a_deviation(stratified):
    """Against the definition: batches of the parts, by hand."""
    rng = np.random.default_rng(0)
    parts = [rng.poisson(rng.gamma(2.0, 50.0), 96) for _ in range(20)]
    rooms = streams.Rooms(96, 16, stratified=stratified)
    rooms.reserve(({"X": lengths} for lengths in parts), {"X": np.uint16})
    strata = [np.sort(lengths).reshape(16, 6).max(1) if stratified else np.sort(lengths)[-16:] for lengths in parts]
    expected = [np.array([stratum.sum() for stratum in strata]), np.array([lengths.sum() for lengths in parts])]
    expected = [bucket_size(int(values.max() + values.std())) for values in expected]
    small = sp.csr_array(np.ones((96, 5), np.float32))
    found = rooms.arranged({"X": small})["X"]
    assert (found.capacity, found.room, found.dtype) == (*expected, np.uint16)


def test_what_does_not_fit_is_told(make_linear, make_data):
    data = make_data(50)
    options = {"batch_size": 8, "max_epochs": 2}
    with pytest.raises(ValueError, match="samples of a source come part by part"):
        train(make_linear(), InPieces(data, 24), validation=0.1, **options)
    with pytest.raises(ValueError, match="an epoch of the loader had 50 samples, 60 were announced"):
        train(make_linear(), IteratorSource([data], 60), **options)
    with pytest.raises(ValueError, match=r"an epoch of the loader had 0 samples, 50 were announced.* a new one"):
        train(make_linear(), IteratorSource(iter([data]), 50), **options)
    good = {key: values[:25] for key, values in data.items()}
    for changed, message in (
        ({**good, "targets": good["targets"][1:]}, "arrays of batch 1 must have one row a sample each, found .* 24"),
        ({"features": good["features"]}, "batch 1 must hold the arrays of batch 0, .*'targets'.*, found {'features'"),
        ({**good, "features": good["features"][:, 1:]}, "batch 1 must hold the arrays of batch 0"),
        ({**good, "targets": good["targets"].astype(str)}, "'targets' of batch 1 must hold numbers, .* found dtype <U"),
        ({**good, "targets": 0.1}, r"'targets' of batch 1 must hold numbers, a row for each sample, .* shape \(\)"),
        (7, "batch 1 must be a dict of arrays, or convert make one of it, found int"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            train(make_linear(), IteratorSource([good, changed], 50), **options)
    for wrong in (0, 2.5, "50", True):
        with pytest.raises(ValueError, match="size must be a whole number of at least 1"):
            IteratorSource([data], wrong)
        with pytest.raises(ValueError, match="part_rows must be a whole number of at least 1"):
            IteratorSource([data], 50, part_rows=wrong)
    with pytest.raises(KeyError, match="targets"):
        train(make_linear(), InPieces({"features": data["features"]}, 24), **options)


def test_trouble_in_the_thread_that_reads_ends_the_run(make_linear, make_data):
    class Broken(InPieces):
        def parts(self, epoch):
            yield from list(super().parts(epoch))[:1]
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        train(make_linear(), Broken(make_data(50), 24, reads_ahead=True), batch_size=8, max_epochs=2)


def test_a_run_on_parts_goes_on_from_a_checkpoint(make_linear, make_data, tmp_path):
    data, options = make_data(70), {"batch_size": 8, "rng": 1}
    whole, resumed = make_linear(dropout=0.1), make_linear(dropout=0.1)
    expected = train(whole, InPieces(data, 24), max_epochs=4, **options)
    store = Checkpoint(tmp_path / "run.npz", 1)
    train(make_linear(dropout=0.1), InPieces(data, 24), max_epochs=2, checkpoint=store, **options)
    report = train(resumed, InPieces(data, 24), max_epochs=4, checkpoint=store, **options)
    np.testing.assert_array_equal(resumed.weights[...], whole.weights[...])
    np.testing.assert_array_equal(report.history["loss"], expected.history["loss"])
