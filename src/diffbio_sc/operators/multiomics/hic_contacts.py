r"""Chromatin contacts of one chromosome: balancing, decay, compartments, boundaries and loops, all differentiable.

Counts O_ij of bins i and j are Poisson, about, of mean L_ij = P(|i - j|) b_i b_j. The exposures b are 1 over the
weights that give every bin the same number of balanced contacts, the decay P is a Poisson regression of the counts at
each distance; both are solved for, and differentiated at their solution. From O and L follow

- observed over expected contacts O / L;
- the leading eigenvector of L^gamma (O / L - 1), A and B compartments;
- for each position the log contrast of contacts within its sides and across it, the boundaries of domains;
- for each pair a matched filter against the largest of four backgrounds, loops.

The equations and sources are in :mod:`diffbio_sc.numerics.genome` (``balancing``, ``decay``, ``compartments``,
``insulation``, ``loops``), whose engines the untrained operator equals. What can be trained starts there: the decay is
multiplied by a learned function of distance, the filter has a learned width, backgrounds have learned weights, and two
networks of ``n_layers`` hidden layers correct the logits of loops, and those of boundaries and compartments; they start
at exactly 0.

A map is a band, diagonals of the upper triangle, so that a long chromosome needs no square matrix.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from diffbio_sc.numerics.genome.balancing_jax import balancing_weights, usable_bins
from diffbio_sc.numerics.genome.bands_jax import (
    ahead,
    band_of_matrix,
    band_of_pixel_list,
    band_product,
    inside,
    matrix_of_band,
)
from diffbio_sc.numerics.genome.compartments_jax import compartment_vector
from diffbio_sc.numerics.genome.decay_jax import log_decay, sums_by_distance
from diffbio_sc.numerics.genome.insulation_jax import contrasts, spread_of_windows
from diffbio_sc.numerics.genome.loops import SHRINKAGE, default_shape
from diffbio_sc.numerics.genome.loops_jax import LoopEvidence, dispersion_by_distance, loop_evidence, z_scores
from diffbio_sc.operators.contract import FitReport, Operator, OperatorConfig, as_float_array
from diffbio_sc.operators.multiomics.contact_correction import KERNEL, Correction
from diffbio_sc.operators.multiomics.contact_training import calibrated, deviance, loop_cross_entropy
from diffbio_sc.training.losses import binary_cross_entropy, masked_mean

_FARTHEST, _UNBENT = 14.0, 10.0
"""Logits go no farther from 0, so that losses of one's own, as log(1 - p), stay finite in single precision; those of
loops bend from the second on, so that strong ones keep their order."""
_PENALTY = 0.1
_DECAY_KNOTS = 16
_LEAST_DISPERSION = 1e-4
_RIVALS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class HiCContactAnalysisConfig(OperatorConfig):
    """Settings of :class:`HiCContactAnalysis`.

    Parameters
    ----------
    resolution
        Width of a bin in base pairs; lengths below are in base pairs too.
    hidden_dim, n_layers
        Width and number of hidden layers of the two networks that correct the statistics. They are exactly 0 until
        trained; ``n_layers=0`` leaves a linear correction.
    distance_decay
        Whether contacts are expected to fall with distance, as a regression on the counts finds and a learned function
        corrects. Without it all pairs are expected to have the same balanced number of contacts.
    ignore_diags
        Number of diagonals left out.
    windows
        Widths of the windows of insulation; empty means 10 and 20 bins.
    max_distance
        Largest distance of the anchors of a loop.
    compartment_distance
        Smallest distance of the pairs that compartments are found from, at most a fifth of the map.
    gamma
        Exponent of the expected counts in the weights of pairs, for compartments.
    boundary_form
        ``"maximum"``: a boundary lies above its neighbours and above a threshold. ``"gradient"``: sigmoid of minus the
        gradient of the insulation score, which is high on the falling flank of each minimum.
    boundary_threshold
        Initial threshold of the boundary score, in standard deviations of the contrast.
    loop_threshold
        Initial threshold of the loop score z.
    temperature
        Initial temperature of compartments: tanh(vector / temperature), which tends to the sign as it goes to 0.
    boundary_temperature, loop_temperature
        Initial temperatures of the soft calls of boundaries and loops.
    learning_rate
        Of :meth:`HiCContactAnalysis.fit`.
    """

    resolution: int = 10_000
    hidden_dim: int = 64
    n_layers: int = 4
    distance_decay: bool = True
    ignore_diags: int = 2
    windows: tuple[int, ...] = ()
    max_distance: int = 2_000_000
    compartment_distance: int = 500_000
    gamma: float = 0.5
    boundary_form: str = "maximum"
    boundary_threshold: float = 1.0
    loop_threshold: float = 4.0
    temperature: float = 1.0
    boundary_temperature: float = 0.1
    loop_temperature: float = 1.0
    learning_rate: float = 0.01

    def validate(self) -> None:
        """Raise ValueError, naming the field, if a value is not allowed."""
        self.require_integers("resolution", "hidden_dim", "max_distance", "compartment_distance")
        self.require_integers("n_layers", "ignore_diags", minimum=0)
        self.require_booleans("distance_decay")
        self.require_sizes("windows", empty_allowed=True)
        short = any(window < 2 * self.resolution for window in self.windows)
        self.require("windows", not short, f"widths of at least two bins of {self.resolution} bp")
        self.require_fractions("gamma")
        self.require_one_of("boundary_form", ("maximum", "gradient"))
        self.require_numbers("boundary_threshold", "loop_threshold")
        self.require_positive("temperature", "boundary_temperature", "loop_temperature", "learning_rate")

    @property
    def windows_in_bins(self) -> tuple[int, ...]:
        """Windows of insulation in bins."""
        return tuple(round(window / self.resolution) for window in self.windows) or (10, 20)


class Contacts(NamedTuple):
    """A map as the operator sees it.

    Attributes
    ----------
    band
        Counts; diagonals that are left out and bins that are not usable are 0.
    used
        Usable bins.
    weights, exposure
        Balancing weights and 1 over them, 0 for others.
    expected
        L, 0 for pairs left out.
    """

    band: Float[Array, "depth n"]
    used: Bool[Array, " n"]
    weights: Float[Array, " n"]
    exposure: Float[Array, " n"]
    expected: Float[Array, "depth n"]


class Parts(NamedTuple):
    """Everything that is computed of one map, on bands."""

    contacts: Contacts
    compartment_logits: Float[Array, " n"]
    boundary_logits: Float[Array, " n"]
    loop_logits: Float[Array, "distance n"]
    scored: Bool[Array, "distance n"]


class HiCContactAnalysis(Operator):
    """Observed over expected contacts, compartments, domain boundaries and loops of a contact map.

    Parameters
    ----------
    config
        Settings.
    rngs
        Random streams; the ``params`` stream makes the networks of the corrections.

    Notes
    -----
    Inputs of ``apply``: ``contact_matrix`` (n, n) or (batch, n, n), raw counts of one chromosome, symmetric (otherwise
    the mean with its transpose is taken); or, in place of it, ``contact_band`` (depth, n) or (batch, depth, n), of
    which entry (k, i) is the count of bins i and i + k: :func:`diffbio_sc.numerics.genome.bands_jax.band_of_pixels`;
    or ``pixel_bins`` (pixels, 2) and ``pixel_counts`` (pixels,), the bins of each pair with contacts, once and in
    either order, and its count, with a ``bin_mask``, whose length is the number of bins. A list is worked through as a
    band as deep as the settings need, and the outputs are bands: memory is that of bins times distances.
    Optionally ``bin_mask`` (n,), which bins are usable, and ``phasing_track`` (n,), which is high in A compartments.

    Outputs: ``normalized_contacts``, observed over expected contacts of the shape of the input, 0 for pairs left out;
    ``compartments`` (n,), from -1 (B) to 1 (A), 0 for bins left out, with an arbitrary sign unless there is a track;
    ``tad_boundaries`` (n,), the probability of a boundary at the start of each bin; ``loop_scores``, of the shape of
    the input, the probability of a loop; and ``loop_logits`` and ``boundary_logits``, for losses of one's own,
    ``expected_contacts``, of the shape of the input, and ``balancing_weights`` (n,).

    Untrained this is the statistics of :func:`diffbio_sc.tl.contacts`. Gradients run to all parameters and to the
    counts; which bins are usable, which of the backgrounds is the largest, and how overdispersed the counts are is held
    fixed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from diffbio_sc.operators.multiomics import HiCContactAnalysis, HiCContactAnalysisConfig
    >>> distance = abs(jnp.arange(100)[:, None] - jnp.arange(100))
    >>> domain = (jnp.arange(100)[:, None] < 50) == (jnp.arange(100) < 50)
    >>> counts = jnp.round(200.0 / (1 + distance) * jnp.where(domain, 2, 1))
    >>> operator = HiCContactAnalysis(HiCContactAnalysisConfig(), rngs=nnx.Rngs(0))
    >>> result, _, _ = operator.apply({"contact_matrix": counts}, {}, None)
    >>> int(result["tad_boundaries"].argmax())
    50
    """

    config_class: ClassVar[type[OperatorConfig]] = HiCContactAnalysisConfig
    required_keys: ClassVar[tuple[str, ...]] = ("contact_matrix",)
    optional_keys: ClassVar[tuple[str, ...]] = ("contact_band", "pixel_counts", "bin_mask", "phasing_track")
    config: HiCContactAnalysisConfig

    def __init__(self, config: HiCContactAnalysisConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        self.decay_correction = nnx.Param(jnp.zeros(_DECAY_KNOTS)) if config.distance_decay else None
        shape = default_shape(config.resolution)
        self.log_filter_width = nnx.Param(jnp.float32(math.log(shape.width)))
        self.log_shrinkage = nnx.Param(jnp.float32(math.log(SHRINKAGE)))
        self.background_bias = nnx.Param(jnp.zeros(4))
        self.log_dispersion = nnx.Param(jnp.float32(0.0))
        self.loop_threshold = nnx.Param(jnp.float32(config.loop_threshold))
        self.log_loop_temperature = nnx.Param(jnp.float32(math.log(config.loop_temperature)))
        maximum = config.boundary_form == "maximum"
        self.window_logits = nnx.Param(jnp.zeros(len(config.windows_in_bins)))
        self.boundary_threshold = nnx.Param(jnp.float32(config.boundary_threshold)) if maximum else None
        self.log_boundary_temperature = nnx.Param(jnp.float32(math.log(config.boundary_temperature)))
        self.log_compartment_temperature = nnx.Param(jnp.float32(math.log(config.temperature)))
        hidden, layers = config.hidden_dim, config.n_layers
        self.loop_correction = Correction(7, 1, hidden, layers, 1, rngs=rngs)
        self.bin_correction = Correction(len(config.windows_in_bins) + 2, 2, hidden, layers, KERNEL, rngs=rngs)

    def check_keys(self, data: Mapping[str, Any]) -> None:
        """Raise KeyError unless there is a map, TypeError if an input is sparse."""
        if "contact_matrix" not in data and "pixel_counts" in data:
            missing = [key for key in ("pixel_bins", "bin_mask") if data.get(key) is None]
            if missing:
                raise KeyError(
                    f"data['pixel_counts'] needs {missing} beside it; found the keys {sorted(map(str, data))}."
                )
            data = {**data, "contact_matrix": data["pixel_counts"]}
        elif "contact_matrix" not in data and "contact_band" in data:
            data = {**data, "contact_matrix": data["contact_band"]}
        super().check_keys(data)

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Return the outputs; see the notes of the class."""
        arrays = self._inputs(data)
        _check_values(arrays)
        # Compiled as one also while gradients are taken from outside: one operation after the other takes far longer.
        return _compiled(HiCContactAnalysis._outputs, *nnx.split(self), arrays, self._is_plain())

    def _is_plain(self) -> bool:
        """Whether the networks are known to add exactly nothing, so that they need not be run."""
        return self.loop_correction.is_zero() and self.bin_correction.is_zero()

    def _outputs(self, arrays: Mapping[str, Array], plain: bool = False) -> dict[str, Array]:
        counts = arrays["contacts"]
        if counts.ndim == 3:
            axes = {name: 0 if name == "contacts" or value.ndim == 2 else None for name, value in arrays.items()}
            axes["is_matrix"] = None
            return jax.vmap(partial(self._outputs, plain=plain), in_axes=(axes,))(arrays)
        square = bool(arrays["is_matrix"].shape[0])
        parts = self.analyse(arrays, plain=plain)
        contacts = parts.contacts
        depth = contacts.band.shape[0]
        good = contacts.expected > 0
        normalized = jnp.where(good, contacts.band / jnp.where(good, contacts.expected, 1.0), 0.0)
        logits = jnp.pad(
            jnp.where(parts.scored, parts.loop_logits, -jnp.inf),
            ((0, max(0, depth - parts.loop_logits.shape[0])), (0, 0)),
            constant_values=-jnp.inf,
        )[:depth]
        logits = _bounded(logits)
        shape = matrix_of_band if square else (lambda band: band)
        compartment = parts.compartment_logits / jnp.exp(self.log_compartment_temperature[...])
        return {
            "normalized_contacts": shape(normalized),
            "compartments": jnp.where(contacts.used, jnp.tanh(compartment), 0.0),
            "tad_boundaries": jax.nn.sigmoid(parts.boundary_logits),
            "loop_scores": shape(jax.nn.sigmoid(logits)),
            "loop_logits": shape(logits),
            "boundary_logits": parts.boundary_logits,
            "expected_contacts": shape(contacts.expected),
            "balancing_weights": contacts.weights,
        }

    def analyse(self, arrays: Mapping[str, Array], *, plain: bool = False) -> Parts:
        """Compute everything of one map; ``plain`` leaves the networks out, which add nothing before training."""
        contacts = self.balance(arrays)
        n = contacts.band.shape[1]
        evidence, z = self.score_loops(contacts)
        vector = self.eigenvector(contacts, arrays.get("phasing_track"))
        windows = tuple(min(window, max(n // 3, 2)) for window in self.config.windows_in_bins)
        insulation, contrast, good = contrasts(contacts.band, contacts.expected, windows, self.config.ignore_diags)
        spread = spread_of_windows(contrast, good)
        temperature = jnp.exp(self.log_loop_temperature[...])
        loop_logits = (z - self.loop_threshold[...]) / temperature
        shift = jnp.zeros((n, 2), contacts.band.dtype)
        if not plain:
            loop_logits = loop_logits + self._correct_loops(evidence, z)
            features = jnp.concatenate(
                [
                    contrast / spread[:, None],
                    vector[None],
                    jnp.where(contacts.used, jnp.log(jnp.where(contacts.used, contacts.exposure, 1.0)), 0.0)[None],
                ]
            )
            shift = self.bin_correction(features.T)
        weights = jax.nn.softmax(self.window_logits[...])
        everywhere = good.all(0)
        if self.config.boundary_form == "gradient":
            temperature = jnp.exp(self.log_boundary_temperature[...])
            boundary = -jnp.gradient(weights @ insulation) / temperature + shift[:, 0]
        else:
            boundary = self._boundary_logits(weights @ (contrast / spread[:, None]), shift[:, 0], everywhere)
        boundary = jnp.clip(jnp.where(everywhere, boundary, -_FARTHEST), -_FARTHEST, _FARTHEST)
        return Parts(contacts, vector + shift[:, 1], boundary, loop_logits, evidence.scored)

    def balance(self, arrays: Mapping[str, Array]) -> Contacts:
        """Balance the map and estimate what is expected of each pair."""
        band = arrays["contacts"]
        if arrays["is_matrix"].shape[0]:
            band = band_of_matrix(band, band.shape[0])
        depth, n = band.shape
        band = jnp.where(jnp.isfinite(band) & jnp.asarray(inside(depth, n)), band, 0.0)
        kept = np.arange(depth) >= self.config.ignore_diags
        band = jnp.where(kept[:, None], band, 0.0)
        used = jax.lax.stop_gradient(usable_bins(band))
        if "bin_mask" in arrays:
            used = used & (arrays["bin_mask"] > 0)
        band = band * used * ahead(used.astype(band.dtype), depth)
        used = used & (jax.lax.stop_gradient(band_product(band, jnp.ones(n, band.dtype))) > 0)
        weights = balancing_weights(band, used)
        exposure = jnp.where(used, 1.0 / jnp.where(used & (weights > 0), weights, 1.0), 0.0)
        counts, offered = sums_by_distance(band, exposure)
        log_value = self._log_decay(counts, offered, kept)
        value = jnp.where(kept & (jnp.arange(depth) < n), jnp.exp(log_value), 0.0)
        expected = value[:, None] * exposure * ahead(exposure, depth)
        return Contacts(band, used, weights, exposure, expected)

    def _log_decay(self, counts, offered, kept):
        config, depth = self.config, counts.shape[0]
        if self.decay_correction is None or depth <= config.ignore_diags + 2:
            total = jnp.where(kept, counts, 0.0).sum() / jnp.maximum(jnp.where(kept, offered, 0.0).sum(), 1e-30)
            return jnp.broadcast_to(jnp.log(jnp.maximum(total, 1e-30)), (depth,))
        nearest = max(config.ignore_diags, 1)
        fitted = log_decay(counts, offered, nearest, _PENALTY)
        share = np.log(np.maximum(np.arange(depth), nearest) / nearest) / np.log((depth - 1) / nearest)
        at = np.arange(_DECAY_KNOTS) / (_DECAY_KNOTS - 1)
        hats = np.maximum(1.0 - np.abs(share[:, None] - at) * (_DECAY_KNOTS - 1), 0.0)
        return fitted + jnp.asarray(hats, fitted.dtype) @ self.decay_correction[...]

    def eigenvector(self, contacts: Contacts, track: Array | None) -> Float[Array, " n"]:
        """Leading eigenvector, weighted mean square 1, turned to follow the track."""
        depth, n = contacts.band.shape
        apart = max(2, min(round(self.config.compartment_distance / self.config.resolution), n // 5, depth // 2))
        _, vector = compartment_vector(contacts.band, contacts.expected, apart, self.config.gamma)
        if track is None:
            side = vector[jnp.argmax(jnp.abs(vector))]
        else:
            usable = contacts.used & jnp.isfinite(track)
            values = jnp.where(usable, track, 0.0)
            side = (vector * jnp.where(usable, values - values.sum() / jnp.maximum(usable.sum(), 1), 0.0)).sum()
        return vector * jax.lax.stop_gradient(jnp.where(side < 0, -1.0, 1.0))

    def score_loops(self, contacts: Contacts) -> tuple[LoopEvidence, Float[Array, "distance n"]]:
        """Evidence of all pairs, and their scores z."""
        depth, n = contacts.band.shape
        shape = default_shape(self.config.resolution)
        smallest = shape.inner + 2
        largest = min(max(round(self.config.max_distance / self.config.resolution), smallest), depth - 1)
        evidence = loop_evidence(
            contacts.band,
            contacts.expected,
            contacts.used,
            shape,
            jnp.exp(self.log_filter_width[...]),
            jnp.exp(self.log_shrinkage[...]),
            self.background_bias[...],
            smallest,
            largest,
            0.5,
        )
        estimate = jnp.zeros(evidence.scored.shape[0], contacts.band.dtype)
        if largest > smallest:
            estimate = dispersion_by_distance(jax.tree.map(jax.lax.stop_gradient, evidence), smallest, largest)
        phi = jnp.exp(self.log_dispersion[...]) * jnp.maximum(estimate, _LEAST_DISPERSION)
        return evidence, z_scores(evidence, phi)

    def _correct_loops(self, evidence: LoopEvidence, z: Array) -> Array:
        rows, n = z.shape
        near = jnp.log(jnp.arange(rows) + 1.0)[:, None] / 5.0
        features = jnp.stack(
            [z / 4.0, *evidence.log_ratios, jnp.log1p(jnp.maximum(evidence.level, 0.0)) / 4.0, near + jnp.zeros_like(z)]
        )
        features = jnp.where(evidence.scored, features, 0.0)
        return self.loop_correction(features.reshape(len(features), -1).T).reshape(rows, n)

    def _boundary_logits(self, score, shift, good):
        """Logit of the product of two soft comparisons: with the threshold, and with the neighbours."""
        temperature = jnp.exp(self.log_boundary_temperature[...])
        n = score.shape[0]
        low = jnp.asarray(-1e6, score.dtype)
        padded = jnp.pad(jnp.where(good, score, low), _RIVALS, constant_values=low)
        around = jnp.stack(
            [padded[_RIVALS + step : _RIVALS + step + n] for step in range(-_RIVALS, _RIVALS + 1) if step]
        )
        rival = temperature * jax.nn.logsumexp(around / temperature, axis=0)
        assert self.boundary_threshold is not None
        above = (score - self.boundary_threshold[...]) / temperature + shift
        beyond = jnp.clip((score - rival) / temperature, -1e4, 1e4)
        return -jax.nn.logsumexp(jnp.stack([-above, -beyond, -above - beyond]), axis=0)

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        """Return what ``fit`` lowers: the sum of the terms for which ``data`` has a target.

        - ``known_loops``, of the shape of the map, 1 for loops: binary cross-entropy, a known loop. The odds of the
          pairs within two bins of a known loop are added up, because a list knows its place no better; pairs up to
          three bins away do not count otherwise. With ``loop_mask`` of the same shape only pairs above 0 there count.
        - ``known_boundaries`` (n,), 1 for boundaries: binary cross-entropy, a bin; NaN means unknown.
        - ``known_compartments`` (n,), from -1 to 1: mean squared error; NaN means unknown.
        - None of these: reconstruction, the Poisson deviance of the counts from the expected ones, a pair.
        """
        arrays = self._inputs(data)
        if arrays["contacts"].ndim == 3:
            raise ValueError("loss takes one map at a time; average it over maps with jax.vmap or a loop.")
        n = arrays["contacts"].shape[-1]
        for name, shape in (
            ("known_loops", arrays["contacts"].shape),
            ("loop_mask", arrays["contacts"].shape),
            ("known_boundaries", (n,)),
            ("known_compartments", (n,)),
        ):
            if data.get(name) is not None:
                arrays[name] = as_float_array(data, name, (len(shape),))
                if arrays[name].shape != shape:
                    raise ValueError(f"data[{name!r}] must have shape {shape}, found {arrays[name].shape}.")
        return _compiled(HiCContactAnalysis._loss, *nnx.split(self), arrays, self._is_plain())

    def _loss(self, arrays: Mapping[str, Array], plain: bool) -> Float[Array, ""]:
        parts = self.analyse(arrays, plain=plain)
        used = parts.contacts.used
        terms = []
        if "known_loops" in arrays:
            terms.append(loop_cross_entropy(parts.loop_logits, *_targets(parts.scored, arrays)))
        if "known_boundaries" in arrays:
            known = arrays["known_boundaries"]
            terms.append(binary_cross_entropy(parts.boundary_logits, known, jnp.isfinite(known) & used))
        if "known_compartments" in arrays:
            known = arrays["known_compartments"]
            soft = jnp.tanh(parts.compartment_logits / jnp.exp(self.log_compartment_temperature[...]))
            counted = jnp.isfinite(known) & used
            terms.append(masked_mean((soft - jnp.where(counted, known, 0.0)) ** 2, counted))
        return sum(terms[1:], terms[0]) if terms else deviance(parts.contacts.band, parts.contacts.expected)

    def fit(  # type: ignore[override]
        self, data: Mapping[str, Any], *, steps: int = 200, learning_rate: float | None = None
    ) -> FitReport:
        """Lower ``loss`` by Adam steps on the whole map.

        With ``known_loops`` the threshold and the temperature of loops are first set to where the loss is smallest,
        which leaves the ranking of pairs as it is; then everything is trained together.

        Parameters
        ----------
        data
            As for :meth:`loss`.
        steps
            Number of steps.
        learning_rate
            Default ``config.learning_rate``.

        Returns
        -------
        Report with the loss of each step. The parameters are those of the smallest loss.
        """
        started = time.perf_counter()
        self.check_keys(data)
        _check_values(self._inputs(data))
        if isinstance(steps, bool) or int(steps) != steps or steps < 1:
            raise ValueError(f"steps must be a positive whole number, found {steps!r}.")
        arrays = {name: jnp.asarray(value) for name, value in data.items() if name in _FIT_KEYS and value is not None}
        if "known_loops" in arrays:
            self.loss(arrays)  # Its checks come before any change.
            self._calibrate_loops(arrays)
        optimizer = optax.adam(self.config.learning_rate if learning_rate is None else learning_rate)
        graph, params, rest = nnx.split(self, nnx.Param, ...)

        @jax.jit
        def advance(params, state, arrays):
            def value(params):
                return nnx.merge(graph, params, rest).loss(arrays)

            loss, gradient = jax.value_and_grad(value)(params)
            updates, state = optimizer.update(gradient, state, params)
            return loss, optax.apply_updates(params, updates), state

        state = optimizer.init(params)
        history, best, lowest = [], params, math.inf
        for _ in range(int(steps)):
            loss, following, state = advance(params, state, arrays)
            history.append(float(loss))
            if not math.isfinite(history[-1]):
                raise ValueError(f"the loss became {history[-1]} at step {len(history)}; lower learning_rate.")
            if history[-1] < lowest:
                best, lowest = params, history[-1]
            params = following
        nnx.update(self, best)
        return FitReport({"loss": np.array(history)}, False, len(history), time.perf_counter() - started)

    def _calibrate_loops(self, data: Mapping[str, Any]) -> None:
        arrays = {**self._inputs(data), **{key: data[key] for key in ("known_loops", "loop_mask") if key in data}}
        z, logits, known, counted = _compiled(
            HiCContactAnalysis._loop_examples, *nnx.split(self), arrays, self._is_plain()
        )
        start = float(self.loop_threshold[...]), float(self.log_loop_temperature[...])
        correction = logits - (z - start[0]) * math.exp(-start[1])
        threshold, log_temperature = calibrated(z, correction, known, counted, start)
        self.loop_threshold[...] = jnp.float32(threshold)
        self.log_loop_temperature[...] = jnp.float32(log_temperature)

    def _loop_examples(self, arrays: Mapping[str, Array], plain: bool) -> tuple[Array, Array, Array, Array]:
        parts = self.analyse(arrays, plain=plain)
        _, z = self.score_loops(parts.contacts)
        return z, parts.loop_logits, *_targets(parts.scored, arrays)

    def _band_of_list(self, data: Mapping[str, Any]) -> Float[Array, "depth n"]:
        config = self.config
        counts, n = as_float_array(data, "pixel_counts", (1,)), len(data["bin_mask"])
        bins = jnp.asarray(data["pixel_bins"])
        if bins.shape != (len(counts), 2) or not jnp.issubdtype(bins.dtype, jnp.integer):
            raise ValueError(
                f"data['pixel_bins'] must hold two whole numbers for each of the {len(counts)} pixels, found shape "
                f"{bins.shape} of {bins.dtype}."
            )
        if not isinstance(bins, jax.core.Tracer) and bins.size and (bins.min() < 0 or bins.max() >= n):
            raise ValueError(
                f"data['pixel_bins'] must lie between 0 and {n - 1}, as bin_mask has {n} bins; found {int(bins.min())} "
                f"to {int(bins.max())}."
            )
        farthest = round(config.max_distance / config.resolution) + 2 * default_shape(config.resolution).outer
        apart = 2 * round(config.compartment_distance / config.resolution)
        depth = min(max(farthest, apart, 2 * max(config.windows_in_bins)) + 1, n)
        return band_of_pixel_list(bins, counts, depth, n)

    def _inputs(self, data: Mapping[str, Any]) -> dict[str, Array]:
        self.check_keys(data)
        square = "contact_matrix" in data
        if not square and "pixel_counts" in data:
            data = {**data, "contact_band": self._band_of_list(data)}
        key = "contact_matrix" if square else "contact_band"
        contacts = as_float_array(data, key, (2, 3))
        if square and contacts.shape[-1] != contacts.shape[-2]:
            raise ValueError(f"data['contact_matrix'] must be square, found shape {contacts.shape}.")
        n = contacts.shape[-1]
        if n < 3 * default_shape(self.config.resolution).outer or contacts.shape[-2] < self.config.ignore_diags + 3:
            raise ValueError(
                f"data[{key!r}] must have at least {3 * default_shape(self.config.resolution).outer} bins and "
                f"{self.config.ignore_diags + 3} diagonals, found shape {contacts.shape}."
            )
        # How a map is laid out is part of its type: an axis of length 1 or 0, which compiled code can tell apart.
        arrays = {"contacts": contacts, "is_matrix": jnp.zeros((int(square),))}
        for name in ("bin_mask", "phasing_track"):
            if data.get(name) is not None:
                arrays[name] = as_float_array(data, name, (1, 2)).astype(contacts.dtype)
                if arrays[name].shape[-1] != n:
                    raise ValueError(f"data[{name!r}] must have {n} bins as the map has, found {arrays[name].shape}.")
        return arrays


_FIT_KEYS = (
    "contact_matrix",
    "pixel_bins",
    "pixel_counts",
    "contact_band",
    "bin_mask",
    "phasing_track",
    "known_loops",
    "loop_mask",
    "known_boundaries",
    "known_compartments",
)


@partial(jax.jit, static_argnums=(0, 1, 4))
def _compiled(method, graph, state, arrays, plain):
    return method(nnx.merge(graph, state), arrays, plain)


def _check_values(arrays: Mapping[str, Array]) -> None:
    if any(isinstance(array, jax.core.Tracer) for array in arrays.values()):
        return
    smallest = float(jnp.nanmin(arrays["contacts"]))
    if smallest < 0:
        raise ValueError(f"contacts must be counts, not negative; smallest value {smallest}.")


def _as_band(key: str, arrays: Mapping[str, Array]) -> Float[Array, "depth n"]:
    values = arrays[key]
    return band_of_matrix(values, values.shape[0]) if arrays["is_matrix"].shape[0] else values


def _bounded(logits: Array) -> Array:
    """Logits between -14 and 14 in the same order; up to 10 from 0 they stay as they are."""
    room = _FARTHEST - _UNBENT
    straight = jnp.clip(logits, -_UNBENT, _UNBENT)
    return straight + room * jnp.tanh((logits - straight) / room)


def _targets(scored: Bool[Array, "distance n"], arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    """Known loops on the scored distances, and which pairs count."""
    rows = scored.shape[0]
    if "loop_mask" in arrays:
        scored = scored & (_as_band("loop_mask", arrays)[:rows] > 0)
    return _as_band("known_loops", arrays)[:rows], scored
