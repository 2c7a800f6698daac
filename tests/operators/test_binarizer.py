"""Soft presence of marks: ChromHMM's threshold, and the bound on the likelihood of counts."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from flax import nnx
from one_program import one_program
from scipy.special import expit

from diffbio_sc.numerics.genome.binarization import presence_thresholds
from diffbio_sc.operators.epigenomics import MarkBinarizer, MarkBinarizerConfig
from diffbio_sc.operators.epigenomics.binarizer import poisson_threshold

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(np.where(RNG.random((200, 3)) < 0.2, 9.0, 0.5)).astype(np.float32)


def make(**settings):
    return MarkBinarizer(MarkBinarizerConfig(num_marks=3, **settings), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("tail", [1e-2, 1e-4])
def test_the_threshold_is_that_of_the_binarisation_by_tables(tail):
    mean = np.concatenate([RNG.uniform(1e-3, 3.0, 300), RNG.uniform(3.0, 200.0, 200)])
    found, expected = np.asarray(poisson_threshold(mean.astype(np.float32), tail)), presence_thresholds(mean, tail=tail)
    # Where the tail at a whole number equals the limit to single precision, either neighbour is right.
    close = np.abs(scipy.stats.poisson.sf(expected - 1, mean) / tail - 1) < 2e-3
    close |= np.abs(scipy.stats.poisson.sf(expected, mean) / tail - 1) < 2e-3
    np.testing.assert_array_equal(found[~close], expected[~close])
    assert close.mean() < 0.02


@pytest.mark.parametrize("slope", [5.0, 1000.0])
def test_untrained_calls_are_those_of_pp_binarize(slope):
    import anndata
    import pandas as pd

    import diffbio_sc as dbio

    start = 200 * np.arange(200)
    obs = pd.DataFrame({"chrom": "chr1", "start": start, "end": start + 200}, index=start.astype(str))
    adata = anndata.AnnData(COUNTS, obs=obs, var=pd.DataFrame(index=list("abc")))
    binary = dbio.pp.binarize(adata, copy=True)
    expected = np.asarray(binary.layers["binary"] if "binary" in binary.layers else binary.X)
    found = np.asarray(one_program(make(slope=slope))({"mark_counts": COUNTS})["histone_marks"])
    np.testing.assert_array_equal(found > 0.5, expected > 0)
    if slope > 100:
        np.testing.assert_allclose(found, expected, atol=1e-6)


def by_scipy(operator, counts):
    """Probability of presence and bound of each entry."""
    config = operator.config
    level = presence_thresholds(counts.mean(0), tail=config.tail) - 0.5
    logits = config.slope * (np.log1p(counts) - np.log1p(level))
    q = expit(logits)
    low, size = counts.mean(0) * config.background, 1 / config.dispersion
    absent, present = (
        scipy.stats.nbinom.logpmf(counts, size, size / (size + mean)) for mean in (low, low * (1 + config.excess))
    )
    spread = scipy.stats.entropy(np.stack([q, 1 - q]))
    return q, q * present + (1 - q) * absent + spread


def test_presence_bound_and_loss_are_their_closed_forms():
    operator, counts = make(), COUNTS.astype(float)
    q, bound = by_scipy(operator, counts)
    result = operator({"mark_counts": COUNTS})
    np.testing.assert_allclose(result["histone_marks"], q, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(result["presence_bound"], bound.sum(1), rtol=1e-4, atol=1e-4)
    share = q.mean(0)
    spread = scipy.stats.entropy(np.stack([share, 1 - share])).sum()
    np.testing.assert_allclose(operator.loss({"mark_counts": COUNTS}), spread - bound.sum(1).mean(), rtol=1e-5)


def test_the_loss_bounds_the_likelihood_of_the_mixture_and_fit_brings_them_together():
    operator = make()
    operator.fit({"mark_counts": COUNTS}, steps=200)
    value = {name: np.exp(np.asarray(getattr(operator, f"log_{name}")[...], float)) for name in
             ("background", "excess", "dispersion")}  # fmt: skip
    low = COUNTS.mean(0) * value["background"]
    laws = [
        scipy.stats.nbinom.pmf(COUNTS, 1 / dispersion, 1 / (1 + dispersion * mean))
        for mean, dispersion in zip((low, low * (1 + value["excess"])), value["dispersion"], strict=True)
    ]
    share = np.asarray(operator({"mark_counts": COUNTS})["histone_marks"]).mean(0)
    exact = -np.log((1 - share) * laws[0] + share * laws[1]).sum(1).mean()
    loss = float(operator.loss({"mark_counts": COUNTS}))
    assert exact <= loss < exact + 0.05
    mean = low * (1 + value["excess"])
    np.testing.assert_allclose(mean, 9.0, rtol=0.15)


def test_missing_counts_and_rows_of_their_own():
    holes = COUNTS.copy()
    holes[50:60, 1] = np.nan
    outputs = one_program(make())
    result = outputs({"mark_counts": holes})
    assert np.isnan(result["histone_marks"][50:60, 1]).all()
    alone = outputs({"mark_counts": np.delete(COUNTS, np.s_[50:60], axis=0)})
    np.testing.assert_allclose(result["histone_marks"][:50, 1], alone["histone_marks"][:50, 1], rtol=1e-5)
    both = outputs({"mark_counts": np.stack([COUNTS, 3 * COUNTS])})
    for row, counts in enumerate((COUNTS, 3 * COUNTS)):
        one = outputs({"mark_counts": counts})
        for name, values in one.items():
            np.testing.assert_allclose(both[name][row], values, rtol=1e-5, err_msg=name)
    with pytest.raises(ValueError, match="finite and not negative, found -1"):
        make()({"mark_counts": COUNTS - 1})
    with pytest.raises(ValueError, match=r"config\.num_marks"):
        make()({"mark_counts": COUNTS[:, :2]})
