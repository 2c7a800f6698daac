r"""Peaks of a coverage track: local background, count log-odds and a two-state chain, all of it differentiable.

The model. Effective reads k_t at position t are Poisson of mean lambda_t outside peaks and f lambda_t within, with

    l_t = k_t log f - (f - 1) lambda_t                       log-odds of the counts
    score of a path z = sum_t l_t z_t - sum of the costs of its changes of state

and posteriors at temperature T proportional to exp(score / T). Towards T = 0 the posterior becomes the best path, which
is the optimal segmentation with a penalty for each change, as in PeakSeg (Hocking, Rigaill, Bourque 2015, ICML). The
background lambda_t is that of MACS (Zhang et al. 2008, Genome Biology 9:R137): the largest of the track's mean and the
means of windows around the position, or of windows of a control. Domains of broad marks fill such windows; for them
lambda is the lower mean of a two-component mixture of the track's windows, and a change costs more. Which of the two
a track is follows from its own autocovariance (:func:`diffbio_sc.numerics.genome.background.breadth`).

Learned parts start as nothing: a multi-scale dilated convolution corrects l and log lambda by its difference to its own
initial state, exactly 0 until trained; the denoiser (a variational autoencoder with Poisson decoder, after SCALE, Xiong
et al. 2019, Nature Communications 10:4576) multiplies a Gaussian smoother by such a difference.

Learned from labels of regions (:mod:`diffbio_sc.operators.epigenomics.peak_labels`), of positions, or from the counts
themselves by splitting them. The networks are in :mod:`diffbio_sc.operators.epigenomics.peak_networks`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffbio_sc.numerics.chains.two_state import SwitchPosterior, switch_posterior
from diffbio_sc.numerics.chains.two_state_host import chain_margins
from diffbio_sc.numerics.genome.background import (
    breadth,
    broad_weight,
    level_contrast,
    local_background,
    robust_level,
)
from diffbio_sc.numerics.genome.marks import BROAD_BINS, NARROW_BINS, bins_of_window
from diffbio_sc.operators.contract import FitReport, FittedStatistic, Operator, OperatorConfig, as_float_array
from diffbio_sc.operators.epigenomics.peak_config import PeakCallerConfig
from diffbio_sc.operators.epigenomics.peak_labels import label_log_probability, longest_region
from diffbio_sc.operators.epigenomics.peak_networks import (
    CorrectionWeight,
    PoissonDenoiser,
    SignalCorrection,
    elbo_loss,
)
from diffbio_sc.training.losses import binary_cross_entropy, poisson_deviance

_SMALLEST_RATE = 1e-6
# Probabilities keep this distance from 0 and 1, one step of float32: a compiler may turn 1 - p + 1e-8 into 1 - p.
_MARGIN = 2.0**-23
_PRIOR_DEVIATION = 1.0


class DifferentiablePeakCaller(Operator):
    """Peak probabilities, calls and boundaries along coverage tracks.

    Parameters
    ----------
    config
        Settings.
    rngs
        Random streams; the ``params`` stream makes the correction and the denoiser.

    Notes
    -----
    Inputs of ``apply``: ``signal`` (length,) or (batch, length), counts or coverage of one track a row, each a
    sequence without gaps; optionally ``control`` of the same shape, which is scaled to the signal's depth; or
    ``background`` of the same shape, the expected signal outside peaks, which then replaces every estimate of it;
    and ``broad`` () or (batch,), the weight from 0 to 1 of the settings of broad marks, which mode ``"auto"`` measures
    otherwise.

    Outputs: ``peak_scores``, the posterior probability of a peak at each position; ``peak_calls``, soft calls,
    one half where the score is at the threshold and 0 or 1 as the temperature goes to 0; ``peak_boundaries``, a dict of
    ``start`` and ``end``: the probabilities that a peak starts at, or ends with, each position; ``peak_logits``, the
    log-odds of the scores, for losses of one's own; ``peak_background``, the expected signal outside peaks. The
    denoiser adds ``denoised_signal`` and ``elbo_loss``, its negative evidence lower bound a position.

    Untrained this is a statistical peak caller, with the network at exactly 0. Gradients run to all parameters and to
    the inputs; the decision between narrow and broad is held fixed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from diffbio_sc.operators.epigenomics import DifferentiablePeakCaller, PeakCallerConfig
    >>> signal = jnp.zeros(1000).at[5::10].set(1.0).at[400:420].set(8.0)
    >>> caller = DifferentiablePeakCaller(PeakCallerConfig(), rngs=nnx.Rngs(0))
    >>> result, _, _ = caller.apply({"signal": signal}, {}, None)
    >>> caller.segments({"signal": signal})[0].tolist()
    [[400, 420]]
    >>> int(result["peak_boundaries"]["start"].argmax())
    400
    """

    config_class: ClassVar[type[OperatorConfig]] = PeakCallerConfig
    required_keys: ClassVar[tuple[str, ...]] = ("signal",)
    optional_keys: ClassVar[tuple[str, ...]] = ("control", "background", "broad")
    config: PeakCallerConfig

    def __init__(self, config: PeakCallerConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        penalty = config.broad_penalty if config.mode == "broad" else config.narrow_penalty
        temperature = nnx.Param if config.learnable_temperature else FittedStatistic
        self.log_excess = nnx.Param(jnp.float32(math.log(config.fold - 1.0)))
        self.log_enter = nnx.Param(jnp.float32(math.log(penalty)))
        self.log_leave = nnx.Param(jnp.float32(math.log(penalty)))
        self.log_background = nnx.Param(jnp.float32(0.0))
        self.threshold_logit = nnx.Param(jnp.float32(math.log(config.threshold / (1.0 - config.threshold))))
        self.log_temperature = temperature(jnp.float32(math.log(config.temperature)))
        self.correction = (
            SignalCorrection(config.num_filters, config.kernel_sizes, rngs=rngs) if config.num_filters else None
        )
        self.denoiser = PoissonDenoiser(config, rngs=rngs) if config.use_vae_denoising else None

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``peak_scores``, ``peak_calls``, ``peak_boundaries``, ``peak_logits`` and ``peak_background``."""
        result = self._run(DifferentiablePeakCaller._outputs, data)
        if jnp.ndim(data["signal"]) == 1:
            result = jax.tree.map(lambda array: array[0], result)
        return result

    def _outputs(self, data: Mapping[str, Any]) -> dict[str, Any]:
        tracks = self._tracks(data)
        denoised = None if self.denoiser is None else self.denoiser(tracks.reads)
        chain, evidence = self._posterior(tracks, None if denoised is None else denoised.rate)
        unit = self.config.positions_per_read
        result = {
            "peak_scores": _probability(chain.logits),
            "peak_calls": jax.nn.sigmoid(self._call_logits(chain)),
            "peak_boundaries": {"start": chain.start, "end": chain.end},
            "peak_logits": chain.logits,
            "peak_background": unit * jnp.exp(evidence.log_background),
        }
        if denoised is not None:
            result["denoised_signal"] = unit * denoised.rate
            result["elbo_loss"] = elbo_loss(tracks.reads, denoised)
        return result

    def segments(self, data: Mapping[str, Any]) -> list[np.ndarray]:
        """Return the hard calls, the best path, as half-open runs of positions.

        Parameters
        ----------
        data
            As for ``apply``.

        Returns
        -------
        For each track an integer array (peaks, 2) of starts and ends. Peaks shorter than ``config.min_peak_width``
        are left out.
        """
        self.check_keys(data)
        log_odds, enter, leave = (
            np.array(part, np.float64) for part in self._run(DifferentiablePeakCaller._chain, data)
        )
        # On the host: quicker than JAX, and without a program of its loops for each length of tracks.
        margin = np.stack([chain_margins(*row) for row in zip(log_odds, enter, leave, strict=True)])
        called = margin > float(self.threshold_logit[...])
        edges = np.diff(np.pad(called.astype(np.int8), ((0, 0), (1, 1))), axis=1)
        found = []
        for row in edges:
            runs = np.stack([np.flatnonzero(row == 1), np.flatnonzero(row == -1)], 1)
            found.append(runs[(runs[:, 1] - runs[:, 0]) * self.config.bin_width >= self.config.min_peak_width])
        return found

    def loss(
        self, data: Mapping[str, Any], *, key: Array | None = None, longest_region: int | None = None
    ) -> Float[Array, ""]:
        """Return what ``fit`` lowers; which loss it is follows from the keys of ``data``.

        - ``labels``, of the shape of ``signal``: binary cross-entropy of the calls, from their logits. NaN means
          unlabelled.
        - ``region_kind`` (batch, regions), integers that index :data:`REGION_KINDS` and -1 for none, with
          ``region_start`` and ``region_end``, half-open positions: minus the log-probability of the weak labels, a
          region, of which a share ``config.label_noise`` is wrong, and a normal prior that draws the scalar parameters
          to their initial values.
        - Neither: count splitting. The reads are thinned into two halves, independent if they are Poisson, and the
          peaks of one predict the counts of the other; Poisson deviance a position. The signal must be integer counts
          of reads, each counted once.

        With a denoiser its evidence lower bound is added, from halves as well.

        Parameters
        ----------
        data
            As for ``apply``, with labels.
        key
            Random key of thinning and of the denoiser's samples; default a fixed one.
        longest_region
            Positions of the longest region at most; default found from the regions, or the length of the signal where
            they are being traced.
        """
        tracks = self._tracks(data)
        key = jax.random.key(0) if key is None else key
        total = jnp.zeros((), tracks.reads.dtype)
        halves = None
        if self.denoiser is not None or not {"labels", "region_kind"} & set(data):
            halves = self._halves(tracks, key)
        rate = None
        if self.denoiser is not None:
            assert halves is not None
            denoised = self.denoiser(halves[0].reads, key=jax.random.fold_in(key, 1))
            total = total + elbo_loss(halves[1].reads, denoised).mean()
            rate = self.denoiser(tracks.reads).rate
        if "labels" in data:
            return total + self._dense_label_loss(tracks, rate, data)
        if "region_kind" in data:
            return total + self._region_loss(tracks, rate, data, longest_region)
        assert halves is not None
        return total + self._splitting_loss(*halves)

    def fit(
        self,
        data: Mapping[str, Any],
        *,
        steps: int = 200,
        learning_rate: float = 0.03,
        network: bool | None = None,
        **options: Any,
    ) -> FitReport:
        """Lower ``loss`` by gradient descent.

        Parameters
        ----------
        data
            As for ``loss``; tracks in rows.
        steps
            Passes through the tracks; all tracks are one step unless ``batch_size`` says otherwise.
        learning_rate
            Of Adam; scalar parameters are logarithms.
        network
            Whether the correction is trained too; default only with dense labels. A few dozen weak labels do not
            determine it, nor do thinned counts, which any smoother predicts well.
        options
            Further arguments of :func:`diffbio_sc.training.train`, such as ``batch_size`` or ``patience``.

        Returns
        -------
        History, whether the stopping rule was met, steps and seconds.
        """
        from diffbio_sc.training.loop import train

        self.check_keys(data)
        single = np.ndim(data["signal"]) == 1
        names = (*self.required_keys, *self.optional_keys, "labels", "region_kind", "region_start", "region_end")
        arrays = {name: np.asarray(data[name]) for name in names if name in data}
        if single:
            arrays = {name: array[None] for name, array in arrays.items()}
        self._checked(arrays)
        longest = None
        if "region_kind" in arrays:
            longest = 1 << max(longest_region(arrays) - 1, 0).bit_length()
        network = "labels" in arrays if network is None else network
        trained: DifferentiablePeakCaller = self
        if not network and self.correction is not None and self.correction.is_zero():
            trained = self._without_correction()
        settings = {
            "batch_size": None,
            "description": "peak caller",
            "wrt": nnx.Param if network else nnx.All(nnx.Param, nnx.Not(CorrectionWeight)),
            "loss": _training_loss(longest),
            **options,
        }
        report = train(trained, arrays, max_epochs=steps, learning_rate=learning_rate, **settings)
        if trained is not self:
            nnx.update(self, nnx.state(trained))
        return report

    def _chain(
        self, data: Mapping[str, Any]
    ) -> tuple[Float[Array, "batch length"], Float[Array, " batch"], Float[Array, " batch"]]:
        """Log-odds and costs of the chain."""
        tracks = self._tracks(data)
        rate = None if self.denoiser is None else self.denoiser(tracks.reads).rate
        evidence = self._evidence(tracks, rate)
        return evidence.log_odds, evidence.enter, evidence.leave

    def _run(self, method: Callable[[Any, Mapping[str, Any]], Any], data: Mapping[str, Any]) -> Any:
        """Apply a method to the tracks, compiled as one unless that happens already further out."""
        names = [*self.required_keys, *(name for name in self.optional_keys if data.get(name) is not None)]
        arrays = {name: data[name] for name in names}
        graph, state = nnx.split(self)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, arrays))):
            return method(self, arrays)
        self._checked(arrays)  # refuses bad values, which compiled code cannot see
        if self.correction is not None and self.correction.is_zero():
            graph, state = nnx.split(self._without_correction())
        return _compiled(method, graph, state, arrays)

    def _without_correction(self) -> DifferentiablePeakCaller:
        """The same operator without a network that adds exactly nothing, at a fraction of the time."""
        plain = nnx.clone(self)
        plain.correction = None
        return plain

    def _tracks(self, data) -> _Tracks:
        arrays = self._checked(data)
        broad = arrays.pop("broad", None)
        scaled = {name: jnp.atleast_2d(array) / self.config.positions_per_read for name, array in arrays.items()}
        return _Tracks(
            scaled["signal"],
            scaled.get("control"),
            scaled.get("background"),
            None if broad is None else jnp.atleast_1d(broad),
        )

    def _checked(self, data) -> dict[str, Array]:
        signal = as_float_array(data, "signal", (1, 2))
        if signal.shape[-1] == 0:
            raise ValueError(f"data['signal'] must have at least one position, found shape {signal.shape}.")
        arrays = {"signal": signal}
        for name in self.optional_keys:
            if data.get(name) is not None:
                shape, which, ranks = signal.shape, "that of data['signal']", (1, 2)
                if name == "broad":
                    shape, which, ranks = signal.shape[:-1], "one value for each track", (0, 1)
                arrays[name] = as_float_array(data, name, ranks).astype(signal.dtype)
                if arrays[name].shape != shape:
                    raise ValueError(f"data[{name!r}] must have shape {shape}, {which}, found {arrays[name].shape}.")
        for name, array in arrays.items():
            if name == "broad":
                _refuse_bad_weights(name, array)
            else:
                _refuse_bad_counts(name, array)
        return arrays

    def _positions(self, base_pairs: float) -> int:
        return max(round(base_pairs / self.config.bin_width), 1)

    def _broad(self, tracks: _Tracks) -> Float[Array, " batch"]:
        if tracks.broad is not None:
            return tracks.broad
        if self.config.mode != "auto":
            return jnp.full(len(tracks.reads), float(self.config.mode == "broad"), tracks.reads.dtype)
        measured = breadth(tracks.reads, self.config.bin_width)
        contrast = level_contrast(tracks.reads, self._positions(self.config.level_window))
        return jax.lax.stop_gradient(broad_weight(measured, contrast))

    def _log_penalty(self, log_penalty, broad):
        if self.config.mode != "auto":
            return jnp.broadcast_to(log_penalty[...], broad.shape)
        return log_penalty[...] + broad * math.log(self.config.broad_penalty / self.config.narrow_penalty)

    def _local_background(self, tracks: _Tracks, broad) -> Float[Array, "batch length"]:
        if tracks.background is not None:
            return jnp.maximum(tracks.background, _SMALLEST_RATE)
        config = self.config
        reads, control = tracks.reads, tracks.control
        narrow = wide = None
        if config.mode != "broad":
            widths = config.background_windows if control is None else config.control_windows
            narrow = self._background_of(tracks, widths, NARROW_BINS.own_window)
        if config.mode != "narrow":
            level = robust_level(reads, self._positions(config.level_window))
            widths = () if control is None else config.control_windows[-1:]
            wide = self._background_of(tracks, widths, BROAD_BINS.own_window, level=level)
        if narrow is None or wide is None:
            return wide if narrow is None else narrow
        return jnp.exp((1.0 - broad[:, None]) * jnp.log(narrow) + broad[:, None] * jnp.log(wide))

    def _background_of(self, tracks: _Tracks, windows, own_window, *, level=None):
        return local_background(
            tracks.reads,
            [bins_of_window(width, self.config.bin_width) for width in windows],
            control=tracks.control,
            own_width=self._positions(own_window),
            level=level,
        )

    def _evidence(self, tracks: _Tracks, rate=None) -> _Evidence:
        broad = self._broad(tracks)
        reads = tracks.reads if rate is None else rate
        log_background = jnp.log(self._local_background(tracks, broad)) + self.log_background[...]
        log_odds_shift = jnp.zeros((), reads.dtype)
        if self.correction is not None and not self.correction.is_zero():
            log_odds_shift, log_background_shift = self.correction(reads, log_background)
            log_background = log_background + log_background_shift
        excess = jnp.exp(self.log_excess[...])
        log_odds = reads * jnp.log1p(excess) - excess * jnp.exp(log_background) + log_odds_shift
        # A track without reads has no background to be low against: nothing in it is a peak.
        empty = reads.sum(-1, keepdims=True) <= 0
        log_odds = jnp.where(empty, jnp.minimum(log_odds, 0.0) - 1.0, log_odds)
        return _Evidence(
            log_odds,
            log_background,
            jnp.exp(self._log_penalty(self.log_enter, broad)),
            jnp.exp(self._log_penalty(self.log_leave, broad)),
        )

    def _posterior(self, tracks: _Tracks, rate=None) -> tuple[SwitchPosterior, _Evidence]:
        evidence = self._evidence(tracks, rate)
        temperature = jnp.exp(self.log_temperature[...])
        return switch_posterior(evidence.log_odds, evidence.enter, evidence.leave, temperature), evidence

    def _call_logits(self, chain: SwitchPosterior):
        return chain.logits - self.threshold_logit[...] * jnp.exp(-self.log_temperature[...])

    def _dense_label_loss(self, tracks, rate, data):
        labels = as_float_array(data, "labels", (1, 2))
        if labels.shape != jnp.shape(data["signal"]):
            raise ValueError(
                f"data['labels'] must have shape {jnp.shape(data['signal'])} as data['signal'] has, "
                f"found {labels.shape}."
            )
        labels = jnp.atleast_2d(labels)
        logits = self._call_logits(self._posterior(tracks, rate)[0])
        return binary_cross_entropy(logits, labels)

    def _region_loss(self, tracks, rate, data, longest):
        if longest is None:
            traced = any(isinstance(data[name], jax.core.Tracer) for name in ("region_start", "region_end"))
            longest = tracks.reads.shape[-1] if traced else longest_region(data)
        chain = self._posterior(tracks, rate)[0]
        log_probability, labelled = label_log_probability(chain, data, self.config.label_noise, longest)
        number = jnp.maximum(labelled.sum(), 1)
        return (self._prior() - jnp.where(labelled, log_probability, 0.0).sum()) / number

    def _prior(self):
        config = self.config
        penalty = config.broad_penalty if config.mode == "broad" else config.narrow_penalty
        pairs = (
            (self.log_excess, math.log(config.fold - 1.0)),
            (self.log_enter, math.log(penalty)),
            (self.log_leave, math.log(penalty)),
            (self.log_background, 0.0),
            (self.log_temperature, math.log(config.temperature)),
        )
        return sum(0.5 * jnp.square((value[...] - start) / _PRIOR_DEVIATION) for value, start in pairs)

    def _halves(self, tracks: _Tracks, key) -> tuple[_Tracks, _Tracks]:
        """Two tracks of half the depth each, independent if the reads are Poisson."""
        counts = jnp.round(tracks.reads * self.config.positions_per_read)
        first = jax.random.binomial(jax.random.fold_in(key, 0), counts, 0.5).astype(counts.dtype)
        halves = (first, counts - first)
        background = None if tracks.background is None else 0.5 * tracks.background
        unit = self.config.positions_per_read
        first, second = (_Tracks(half / unit, tracks.control, background, tracks.broad) for half in halves)
        return first, second

    def _splitting_loss(self, first: _Tracks, second: _Tracks):
        rate = None if self.denoiser is None else self.denoiser(first.reads).rate
        chain, evidence = self._posterior(first, rate)
        enriched = 1.0 + jnp.exp(self.log_excess[...]) * jax.nn.sigmoid(chain.logits)
        mean = jnp.exp(evidence.log_background) * enriched
        return poisson_deviance(second.reads, mean).mean()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(method, graph, state, data):
    return method(nnx.merge(graph, state), data)


class _Tracks(NamedTuple):
    """Effective reads of signal, control and background, (batch, length), and the weight of broad settings."""

    reads: Float[Array, "batch length"]
    control: Float[Array, "batch length"] | None
    background: Float[Array, "batch length"] | None
    broad: Float[Array, " batch"] | None


class _Evidence(NamedTuple):
    """What the chain is given."""

    log_odds: Float[Array, "batch length"]
    log_background: Float[Array, "batch length"]
    enter: Float[Array, " batch"]
    leave: Float[Array, " batch"]


def _probability(logits):
    return _MARGIN + (1.0 - 2.0 * _MARGIN) * jax.nn.sigmoid(logits)


def _refuse_bad_counts(name: str, array: Array) -> None:
    # Values cannot be seen while they are traced; outside of jit this is where bad ones stop.
    if isinstance(array, jax.core.Tracer):
        return
    values = np.asarray(array)
    for bad, what in ((~np.isfinite(values), "finite"), (values < 0, "not negative")):
        if bad.any():
            where = tuple(int(index) for index in np.argwhere(bad)[0])
            raise ValueError(
                f"data[{name!r}] must be {what}: {int(bad.sum())} of {bad.size} values are not, the first at index "
                f"{where} is {values[where]}. Cut the track at gaps, or set missing positions to 0."
            )


def _refuse_bad_weights(name: str, array: Array) -> None:
    if isinstance(array, jax.core.Tracer):
        return
    values = np.asarray(array)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"data[{name!r}] must lie between 0 and 1, found {values.min()} to {values.max()}.")


@functools.lru_cache(maxsize=32)
def _training_loss(longest: int | None) -> Callable[[Any, dict[str, Array], Array], Array]:
    # Cached, because compiled training steps are found again by the function.
    def loss(operator: DifferentiablePeakCaller, batch: dict[str, Array], key: Array) -> Array:
        return operator.loss(batch, key=key, longest_region=longest)

    return loss
