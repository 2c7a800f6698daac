"""Mixture of Gaussian processes over genes: which genes share a spatial pattern, and the pattern's map.

Gene g of pattern k has expression y_g = a_g mu_k + e_g over the spots, with mu_k ~ GP(0, v K), a positive amplitude
a_g ~ N(1, 0.5^2) cut at 0, and deviations e_g ~ N(0, s^2 I + w^2 K). In the eigenbasis of K everything is diagonal; a
low rank of it carries the patterns. Fitted by variational expectation maximisation from several starts at once.

After the automatic expression histology of SpatialDE (Svensson et al. 2018, Nature Methods 15:343).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import gammaln, log_ndtr, logsumexp

_STARTS = 8
_FINALISTS = 2
_SCREENING_STEPS = 15
_STEPS = 300
_TOLERANCE = 0.01
_AMPLITUDE_DEVIATION = 0.5
_LOG_SQRT_2PI = 0.5 * np.log(2 * np.pi)


class Mixture(NamedTuple):
    """Several fits of the mixture at once, along the first axis.

    ``mean`` and ``variance`` (fits, patterns, rank): posterior of the patterns; ``log_share`` (fits, patterns): log
    proportions; ``noise`` (fits, rank): variance of the deviations; ``scale`` (fits,): v of the patterns' prior.
    """

    mean: np.ndarray
    variance: np.ndarray
    log_share: np.ndarray
    noise: np.ndarray
    scale: np.ndarray

    def select(self, fits: np.ndarray) -> Mixture:
        """Some of the fits."""
        return Mixture(*(field[fits] for field in self))


class _Expectation(NamedTuple):
    """Responsibilities, with the first two moments of the amplitudes (fits, genes, patterns); log likelihoods."""

    responsibility: np.ndarray
    amplitude: np.ndarray
    squared: np.ndarray
    log_likelihood: np.ndarray


class MixtureFit(NamedTuple):
    """The best fit for one number of patterns; ``mean`` (patterns, rank)."""

    mixture: Mixture
    evidence: float
    history: np.ndarray
    converged: bool

    @property
    def mean(self) -> np.ndarray:
        """Patterns in the eigenbasis, by rank."""
        return self.mixture.mean[0]

    def assign(self, data: np.ndarray) -> np.ndarray:
        """Posterior probabilities of the patterns, genes by patterns."""
        return expect(self.mixture, data).responsibility[0]


def fit_mixture(data: np.ndarray, spectrum: np.ndarray, number: int, generator: np.random.Generator) -> MixtureFit:
    """Best of several starts, screened by a few steps and the leaders run to the end."""
    weights = _hard_starts(data, spectrum, number, generator)
    expectation = _Expectation(weights, np.ones_like(weights), np.ones_like(weights), np.zeros(len(weights)))
    start = Mixture(
        mean=np.zeros((len(weights), number, data.shape[1])),
        variance=np.zeros((len(weights), number, data.shape[1])),
        log_share=np.zeros((len(weights), number)),
        noise=np.ones((len(weights), data.shape[1])),
        scale=np.full(len(weights), max((data**2).sum() / len(data) / spectrum.sum(), 1e-12)),
    )
    mixture = _maximise(start, expectation, data, spectrum)
    mixture, curves, _ = _iterate(mixture, data, spectrum, _SCREENING_STEPS)
    leaders = np.argsort(-curves[:, -1], kind="stable")[:_FINALISTS]
    curves = curves[leaders]
    mixture, more, converged = _iterate(mixture.select(leaders), data, spectrum, _STEPS)
    best = int(more[:, -1].argmax())
    history = np.concatenate([curves[best], more[best]])
    evidence = history[-1] - 0.5 * (number - 1) * np.log(len(data)) + gammaln(number + 1)
    return MixtureFit(mixture.select(np.array([best])), float(evidence), history, converged)


def _iterate(mixture: Mixture, data, spectrum, steps) -> tuple[Mixture, np.ndarray, bool]:
    """Steps of variational expectation maximisation; the bounds before each step (fits, steps)."""
    bounds: list[np.ndarray] = []
    for _ in range(steps):
        expectation = expect(mixture, data)
        bounds.append(expectation.log_likelihood - _divergence(mixture, spectrum))
        if len(bounds) > 1 and np.abs(bounds[-1] - bounds[-2]).max() < _TOLERANCE:
            return mixture, np.stack(bounds, 1), True
        mixture = _maximise(mixture, expectation, data, spectrum)
    return mixture, np.stack(bounds, 1), False


def expect(mixture: Mixture, data: np.ndarray) -> _Expectation:
    """Exact posterior of pattern and amplitude of each gene, given the posterior of the patterns.

    The amplitude's prior is a normal distribution cut at 0, so that a gene with the opposite map is not of the pattern.
    """
    prior = 1 / _AMPLITUDE_DEVIATION**2
    noise = mixture.noise[:, None]
    precision = ((mixture.mean**2 + mixture.variance) / noise).sum(2)[:, None] + prior
    linear = data @ np.swapaxes(mixture.mean / noise, 1, 2) + prior
    standard = linear / np.sqrt(precision)
    log_positive = log_ndtr(standard)
    common = -0.5 * (data**2 @ (1 / mixture.noise).T).T - 0.5 * np.log(2 * np.pi * mixture.noise).sum(1)[:, None]
    log_evidence = 0.5 * standard**2 + log_positive - 0.5 * np.log(precision)
    log_evidence += 0.5 * np.log(prior) - 0.5 * prior - log_ndtr(np.sqrt(prior))
    joint = common[:, :, None] + log_evidence + mixture.log_share[:, None]
    total = logsumexp(joint, axis=2)
    ratio = np.exp(-0.5 * standard**2 - _LOG_SQRT_2PI - log_positive)
    return _Expectation(
        np.exp(joint - total[:, :, None]),
        np.maximum(standard + ratio, 0.0) / np.sqrt(precision),
        np.maximum(1 + standard * (standard + ratio), 0.0) / precision,
        total.sum(1),
    )


def _maximise(mixture: Mixture, expectation: _Expectation, data: np.ndarray, spectrum: np.ndarray) -> Mixture:
    genes = len(data)
    weight = (expectation.responsibility * expectation.squared).sum(1)[:, :, None]
    target = np.swapaxes(expectation.responsibility * expectation.amplitude, 1, 2) @ data
    noise = mixture.noise[:, None]
    variance = 1 / (1 / (mixture.scale[:, None, None] * spectrum) + weight / noise)
    mean = variance * target / noise
    second = mean**2 + variance
    scale = np.maximum((second / spectrum).mean((1, 2)), 1e-12)
    error = ((data**2).sum(0) - 2 * (target * mean).sum(1) + (weight * second).sum(1)) / genes
    share = expectation.responsibility.sum(1) / genes
    return Mixture(mean, variance, np.log(np.maximum(share, 1e-12)), fit_noise(mixture.noise, error, spectrum), scale)


def fit_noise(noise: np.ndarray, error: np.ndarray, spectrum: np.ndarray) -> np.ndarray:
    """Maximum likelihood of ``s^2 + w^2 spectrum`` for mean squared errors, by a few steps of Fisher scoring."""
    relative = spectrum / spectrum.max()
    for _ in range(3):
        weight = 1 / noise**2
        aa, ab, bb = weight.sum(1), (weight * relative).sum(1), (weight * relative**2).sum(1)
        ay, by = (weight * error).sum(1), (weight * relative * error).sum(1)
        determinant = aa * bb - ab**2
        singular = determinant <= 1e-9 * aa * bb
        divisor = np.where(singular, 1.0, determinant)
        white, smooth = (bb * ay - ab * by) / divisor, (aa * by - ab * ay) / divisor
        flat = singular | (smooth < 0)
        white, smooth = np.where(flat, ay / aa, white), np.where(flat, 0.0, smooth)
        # A little white noise always remains: with none, the last eigenvectors would decide everything.
        least = 0.05 * ay / aa
        low = white < least
        smooth = np.where(low, np.maximum(by - least * ab, 0.0) / bb, smooth)
        white = np.where(low, least, white)
        noise = np.maximum(white[:, None] + smooth[:, None] * relative, 1e-6)
    return noise


def _divergence(mixture: Mixture, spectrum: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of the patterns' posterior from their prior, a number for each fit."""
    ratio = mixture.variance / (mixture.scale[:, None, None] * spectrum)
    distance = mixture.mean**2 / (mixture.scale[:, None, None] * spectrum)
    return 0.5 * (ratio + distance - 1 - np.log(ratio)).sum((1, 2))


def _hard_starts(data: np.ndarray, spectrum: np.ndarray, number: int, generator: np.random.Generator) -> np.ndarray:
    """k-means++ on the directions of the genes, several starts at once: memberships (starts, genes, patterns)."""
    power = (data**2).mean(0)
    # What exceeds the noise of the last eigenvectors, which hold the least signal.
    floor = np.median(power[np.argsort(spectrum, kind="stable")[: max(len(power) // 4, 1)]])
    reliability = np.maximum(1 - floor / np.maximum(power, 1e-12), 0.02)
    direction = data * reliability
    direction = direction / np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-12)
    draws = generator.uniform(size=(_STARTS, number))
    chosen = np.minimum((draws[:, :1] * len(data)).astype(int), len(data) - 1)
    nearest = 1 - np.einsum("sr,gr->sg", direction[chosen[:, 0]], direction)
    for step in range(1, number):
        cumulative = np.cumsum(np.maximum(nearest, 1e-12), axis=1)
        cumulative /= cumulative[:, -1:]
        new = np.minimum((cumulative < draws[:, step : step + 1]).sum(1), len(data) - 1)
        chosen = np.concatenate([chosen, new[:, None]], 1)
        nearest = np.minimum(nearest, 1 - direction[new] @ direction.T)
    centre = direction[chosen]
    for _ in range(5):
        member = (direction @ np.swapaxes(centre, 1, 2)).argmax(2)
        weights = (member[:, :, None] == np.arange(number)).astype(np.float64)
        moved = np.swapaxes(weights, 1, 2) @ direction
        length = np.linalg.norm(moved, axis=2, keepdims=True)
        centre = np.where(length > 1e-12, moved / np.maximum(length, 1e-12), centre)
    return weights
