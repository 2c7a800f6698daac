r"""Chromatin states: a hidden Markov model of combinations of histone marks, exact, differentiable and trained by EM.

The model. Bin t of a genome is in a state z_t of K; states follow each other with probabilities A, the first has
probabilities pi; given its state, marks are independent of each other,

    P(x, z) = pi_{z_1} prod_t A_{z_t z_{t+1}} prod_t prod_m P(x_tm | z_t)

with P(x = 1 | k) = p_km for presence (Ernst, Kellis 2010, Nature Biotechnology 28:817; 2012, Nature Methods 9:215), or
counts, signal and shares (:mod:`diffbio_sc.numerics.chains.emission_likelihoods`). A missing mark adds nothing.

The derivative of the log-likelihood by log A is the expected number of transitions, by the log-likelihood of a bin in a
state its posterior: one exact forward-backward pass is at once the E-step of EM and the gradient
(:mod:`diffbio_sc.numerics.chains.hmm`). Nothing is taped along the genome.

At a temperature T paths have probability proportional to P(x, z)^{1/T}. Their marginals, ``state_probabilities``, are
the posterior at T = 1 and the most probable path as T goes to 0; never an average of the numbers of states.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from diffbio_sc.numerics.chains import emission_likelihoods, hmm
from diffbio_sc.operators.config import OperatorConfig
from diffbio_sc.operators.contract import FitReport, Operator, as_float_array, check_axis_size

EMISSIONS = ("bernoulli", "poisson", "negative_binomial", "gaussian", "multinomial")
_METHODS = ("em", "gradient", "em+gradient")
_STAY = 0.9  # initial probability to stay in a state
_IMPOSSIBLE = -1e4  # a log-odds that stands for a probability of exactly 0, and is a number
_START_STEPS = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChromatinStateConfig(OperatorConfig):
    """Settings of :class:`ChromatinStateAnnotator`.

    Parameters
    ----------
    num_states
        Number of states; 15 is the default of ChromHMM.
    num_marks
        Number of marks.
    temperature
        Of ``state_probabilities``: 1 is the exact posterior, toward 0 the most probable path.
    emission
        Family of the marks given a state: ``"bernoulli"`` (presence), ``"poisson"``, ``"negative_binomial"`` (counts),
        ``"gaussian"`` (signal) or ``"multinomial"`` (shares of the marks among a bin's reads).
    variance_floor
        Least variance of the Gaussian, in squared units of the signal.
    use_cell_type_conditioning
        Whether emissions are shifted by cell type. The shifts are exactly 0 until trained.
    num_cell_types
        Number of cell types.
    """

    num_states: int = 15
    num_marks: int = 6
    temperature: float = 1.0
    emission: Literal["bernoulli", "poisson", "negative_binomial", "gaussian", "multinomial"] = "bernoulli"
    variance_floor: float = 1e-6
    use_cell_type_conditioning: bool = False
    num_cell_types: int = 1

    def validate(self) -> None:
        """Raise ValueError, naming the field, if a value is not allowed."""
        self.require_integers("num_states", "num_marks", "num_cell_types")
        self.require_positive("temperature", "variance_floor")
        self.require_one_of("emission", EMISSIONS)
        self.require_booleans("use_cell_type_conditioning")


class ChromatinStateAnnotator(Operator):
    """States of bins from histone marks, by an exact hidden Markov model.

    Parameters
    ----------
    config
        Settings.
    rngs
        Random streams; the ``params`` stream draws the first emissions.

    Notes
    -----
    Inputs of ``apply``: ``histone_marks`` (length, num_marks) or (batch, length, num_marks), each row of the batch a
    sequence of its own, NaN where missing. Optional: ``mark_mask`` of the same shape, False where missing;
    ``sequence_start`` (length,) or (batch, length), True where a new sequence begins within a row; ``length``
    (batch,), bins of each row, after which there is padding; ``cell_type``, a number, or weights of the cell types
    (num_cell_types,), for each row of a batch if there is one. Presence must be 0 or 1; a number between is an
    expected presence, as an upstream network gives, and any other is refused.

    Outputs: ``state_posteriors`` (length, num_states), P(state | all marks); ``state_probabilities``, the same at
    ``config.temperature``; ``viterbi_path`` (length,), numbers of the states on the most probable path, by
    back-tracking;
    ``log_likelihood``, of all bins of a row. Padding has probabilities 0 and state -1.

    Parameters are ``initial_logits``, ``transition_logits`` and those of the emissions, read as probabilities by
    :attr:`initial_distribution`, :attr:`transition_matrix` and :attr:`emission_matrix`. Train with :meth:`fit`, by EM,
    or with a loss of one's own; whole genomes with :func:`diffbio_sc.tl.chromatin_states`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from diffbio_sc.operators.epigenomics import ChromatinStateAnnotator, ChromatinStateConfig
    >>> annotator = ChromatinStateAnnotator(ChromatinStateConfig(num_states=2, num_marks=1), rngs=nnx.Rngs(0))
    >>> marks = jnp.tile(jnp.repeat(jnp.array([0.0, 1.0]), 50), 4)[:, None]
    >>> annotator.fit({"histone_marks": marks}).converged
    True
    >>> result, _, _ = annotator.apply({"histone_marks": marks}, {}, None)
    >>> bool((result["viterbi_path"][:50] == result["viterbi_path"][0]).all())
    True
    """

    config_class: ClassVar[type[OperatorConfig]] = ChromatinStateConfig
    required_keys: ClassVar[tuple[str, ...]] = ("histone_marks",)
    optional_keys: ClassVar[tuple[str, ...]] = ("mark_mask", "sequence_start", "length", "cell_type")
    config: ChromatinStateConfig

    def __init__(self, config: ChromatinStateConfig, *, rngs: nnx.Rngs):
        super().__init__(config, rngs=rngs)
        states, shape = config.num_states, (config.num_states, config.num_marks)
        stay = np.log(_STAY * max(states - 1, 1) / (1.0 - _STAY))
        self.initial_logits = nnx.Param(jnp.zeros(states))
        self.transition_logits = nnx.Param(jnp.asarray(stay * np.eye(states), jnp.float32))
        first = rngs.params.normal(shape)
        if config.emission in ("bernoulli", "multinomial"):
            self.emission_logits = nnx.Param(first)
        elif config.emission == "gaussian":
            self.emission_mean = nnx.Param(first)
            self.emission_log_variance = nnx.Param(jnp.zeros(shape))
        else:
            self.emission_log_mean = nnx.Param(first)
            if config.emission == "negative_binomial":
                self.emission_log_dispersion = nnx.Param(jnp.zeros(shape))
        if config.use_cell_type_conditioning:
            self.cell_type_shift = nnx.Param(jnp.zeros((config.num_cell_types, *shape)))

    @property
    def initial_distribution(self) -> Float[Array, " states"]:
        """Probability of each state in the first bin."""
        return jax.nn.softmax(self.initial_logits[...])

    @property
    def transition_matrix(self) -> Float[Array, "states states"]:
        """Probability of the next bin's state (column) given this bin's (row)."""
        return jax.nn.softmax(self.transition_logits[...], axis=-1)

    @property
    def emission_matrix(self) -> Float[Array, "states marks"]:
        """Probability that a mark is present, its mean, or the share of each mark; of no particular cell type."""
        if self.config.emission == "bernoulli":
            return jax.nn.sigmoid(self.emission_logits[...])
        if self.config.emission == "multinomial":
            return jax.nn.softmax(self.emission_logits[...], axis=-1)
        if self.config.emission == "gaussian":
            return self.emission_mean[...]
        return jnp.exp(self.emission_log_mean[...])

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Return ``state_probabilities``, ``state_posteriors``, ``viterbi_path`` and ``log_likelihood``."""
        graph, state = nnx.split(self)
        names = [key for key in (*self.required_keys, *self.optional_keys) if data.get(key) is not None]
        arrays = {key: data[key] if isinstance(data[key], jax.Array) else np.asarray(data[key]) for key in names}
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, arrays))):
            return self._outputs(arrays)
        self._arrays(arrays)  # refuses bad values, which compiled code cannot see
        return _compiled(graph, state, arrays)

    def _outputs(self, data: Mapping[str, Any]) -> dict[str, Array]:
        rows, starts, valid = self._rows(data)
        temperature = self.config.temperature
        initial, transition = self._log_chain()
        one = functools.partial(_decode, temperature=temperature)
        if rows.ndim == 2:
            found = one(initial, transition, rows, starts, valid)
        else:
            found = jax.vmap(one, (None, None, 0, 0, 0))(initial, transition, rows, starts, valid)
        return found

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        """Return minus the log-likelihood of a bin, averaged over the bins of all sequences."""
        rows, starts, valid = self._rows(data)
        initial, transition = self._log_chain()

        def one(rows, starts, valid):
            return hmm.log_likelihood(initial, transition, rows, starts=starts, valid=valid)

        total = one(rows, starts, valid) if rows.ndim == 2 else jax.vmap(one)(rows, starts, valid).sum()
        return -total / jnp.maximum(valid.sum(), 1)

    def fit(
        self,
        data: Mapping[str, Any],
        *,
        method: Literal["em", "gradient", "em+gradient"] | None = None,
        start: Literal["data", "current"] = "data",
        max_steps: int = 200,
        tolerance: float = 1e-7,
        learning_rate: float = 0.05,
        **options: Any,
    ) -> FitReport:
        """Lower ``loss`` by expectation maximisation, by gradient descent, or by one after the other.

        Parameters
        ----------
        data
            As for ``apply``.
        method
            ``"em"``, which is exact and fast, is the default; with cell types ``"em+gradient"`` is, since their shifts
            have no EM step.
        start
            ``"data"`` begins with the best of three partitions of the bins, ``"current"`` with the present parameters.
            Gradient descent alone always begins with the present ones.
        max_steps
            Most steps of each method.
        tolerance
            EM ends when a plain step gains less log-likelihood than this for each bin.
        learning_rate
            Of Adam.
        options
            Further arguments of :func:`diffbio_sc.training.train`.

        Returns
        -------
        History (``loss``), whether the stopping rule was met, steps and seconds.
        """
        self.check_keys(data)
        conditioned = self.config.use_cell_type_conditioning
        method = method or ("em+gradient" if conditioned else "em")
        if method not in _METHODS:
            raise ValueError(f"method must be one of {list(_METHODS)}, found {method!r}.")
        if start not in ("data", "current"):
            raise ValueError(f"start must be 'data' or 'current', found {start!r}.")
        if conditioned and method == "em":
            raise ValueError("EM does not train the shifts of cell types: use method='em+gradient' or 'gradient'.")
        began = time.perf_counter()
        histories, steps, converged = [], 0, False
        if method != "gradient":
            result = self._fit_by_em(data, start, max_steps, tolerance)
            histories.append(result[0])
            converged, steps = result[1], result[2]
        if method != "em":
            report = self._fit_by_gradient(data, max_steps, learning_rate, options)
            histories.append(report.history["loss"])
            converged, steps = report.converged, steps + report.steps
        return FitReport({"loss": np.concatenate(histories)}, converged, steps, time.perf_counter() - began)

    def _fit_by_em(self, data, start, max_steps, tolerance) -> tuple[np.ndarray, bool, int]:
        from diffbio_sc.numerics.chains import baum_welch, starts

        observations = self._observations(data)
        bins = observations.n_positions
        steps = 0
        if start == "data":
            sample = starts.sample_bins(observations)
            rng = np.random.default_rng(0)
            found = []
            for criterion in starts.CRITERIA:
                model = starts.partition_start(sample, self.config.num_states, self.config.emission, criterion, rng)
                found.append(baum_welch.fit(observations, model, max_steps=_START_STEPS, tolerance=tolerance * bins))
                steps += found[-1].steps
            model = max(found, key=lambda one: one.objective).parameters
        else:
            model = self._as_model()
        result = baum_welch.fit(observations, model, max_steps=max_steps, tolerance=tolerance * bins)
        if not np.isfinite(result.objective):
            raise ValueError(
                "the present parameters cannot make the data: their probability is zero. Use start='data'."
            )
        self._take_model(result.parameters)
        return -result.history / bins, result.converged, steps + result.steps

    def _fit_by_gradient(self, data, max_steps, learning_rate, options) -> FitReport:
        from diffbio_sc.training.loop import train

        arrays = {key: np.asarray(data[key]) for key in (*self.required_keys, *self.optional_keys) if key in data}
        if arrays["histone_marks"].ndim == 2:
            arrays = {key: value[None] for key, value in arrays.items()}
        settings = {"batch_size": None, "description": "chromatin states", **options}
        return train(self, arrays, max_epochs=max_steps, learning_rate=learning_rate, **settings)

    def _observations(self, data):
        from diffbio_sc.numerics.chains.baum_welch import Observations
        from diffbio_sc.numerics.chains.patterns import PatternKeys

        marks, known, starts, valid = (np.asarray(part) for part in self._arrays(data))
        marks = np.where(known, marks, np.nan)
        if marks.ndim == 2:
            marks, starts, valid = marks[None], starts[None], valid[None]
        begins = starts & valid
        begins[:, 0] |= valid[:, 0]
        rows, lengths = marks[valid], np.diff(np.append(np.flatnonzero(begins[valid]), valid.sum()))
        values = rows[np.isfinite(rows)]
        if self.config.emission != "gaussian" and (values == np.floor(values)).all() and rows.shape[1] <= 64:
            keys = PatternKeys(len(rows), np.nan_to_num(rows, nan=0.0).max(0))
            if keys.fits:
                for column in rows.T:
                    keys.add(column)
                found = keys.distinct(max(len(rows) // 4, 64))
                if found is not None:
                    return Observations(found[0], lengths, index=found[1])
        return Observations(rows, lengths)

    def _as_model(self):
        from diffbio_sc.numerics.chains import emissions
        from diffbio_sc.numerics.chains.baum_welch import MarkovModel

        mean = np.asarray(self.emission_matrix, np.float64)
        kind = self.config.emission
        family: emissions.Emission
        if kind == "negative_binomial":
            dispersion = np.exp(np.asarray(self.emission_log_dispersion[...], np.float64))
            family = emissions.NegativeBinomial(mean, dispersion)
        elif kind == "gaussian":
            floor = np.full(mean.shape[1], self.config.variance_floor)
            family = emissions.Gaussian(mean, np.exp(np.asarray(self._log_variance(), np.float64)), floor)
        else:
            family = emissions.FAMILIES[kind](mean)
        initial, transition = (np.exp(np.asarray(part, np.float64)) for part in self._log_chain())
        return MarkovModel(initial / initial.sum(), transition / transition.sum(1, keepdims=True), family)

    def set_parameters(
        self,
        initial: np.ndarray,
        transition: np.ndarray,
        emission: np.ndarray,
        **parameters: np.ndarray,
    ) -> None:
        """Take the parameters of a given model.

        Parameters
        ----------
        initial, transition
            Probabilities (states,) and (states, states). Exact zeros stay impossible.
        emission
            Probability of presence, mean, or shares (states, marks).
        parameters
            ``dispersion`` of the negative binomial, ``variance`` of the Gaussian (states, marks).
        """
        arrays = {"initial": initial, "transition": transition, "emission": emission, **parameters}
        states, marks = self.config.num_states, self.config.num_marks
        further = {"negative_binomial": {"dispersion"}, "gaussian": {"variance"}}.get(self.config.emission, set())
        if set(parameters) != further:
            raise ValueError(f"a {self.config.emission} emission takes {sorted(further)}, found {sorted(parameters)}.")
        for name, value in arrays.items():
            shape = {"initial": (states,), "transition": (states, states)}.get(name, (states, marks))
            if np.shape(value) != shape or not np.isfinite(value).all():
                raise ValueError(f"{name} must be finite and have shape {shape}, found shape {np.shape(value)}.")
        dtype = self.initial_logits[...].dtype

        def store(parameter, value):
            parameter[...] = jnp.asarray(np.asarray(value, np.float64), dtype)

        store(self.initial_logits, _log(initial))
        store(self.transition_logits, _log(transition))
        kind = self.config.emission
        emission = np.asarray(emission, np.float64)
        if kind == "bernoulli":
            store(self.emission_logits, _log(emission) - _log(1.0 - emission))
        elif kind == "multinomial":
            store(self.emission_logits, _log(emission))
        elif kind == "gaussian":
            store(self.emission_mean, emission)
            # The floor is added to what is stored.
            above = np.asarray(parameters["variance"], np.float64) - self.config.variance_floor
            store(self.emission_log_variance, np.log(np.maximum(above, 1e-3 * self.config.variance_floor)))
        else:
            store(self.emission_log_mean, np.log(np.maximum(emission, 1e-12)))
            if kind == "negative_binomial":
                store(self.emission_log_dispersion, np.log(np.asarray(parameters["dispersion"], np.float64)))

    def _take_model(self, model) -> None:
        self.set_parameters(model.initial, model.transition, model.emission.mean, **model.emission.parameters)

    def _log_chain(self) -> tuple[Array, Array]:
        return (
            jax.nn.log_softmax(self.initial_logits[...]),
            jax.nn.log_softmax(self.transition_logits[...], axis=-1),
        )

    def _log_variance(self) -> Float[Array, "states marks"]:
        return jnp.logaddexp(self.emission_log_variance[...], jnp.log(self.config.variance_floor))

    def _arrays(self, data) -> tuple[Array, Array, Array, Array]:
        """Marks, which of them are known, where sequences begin, and which bins there are."""
        marks = as_float_array(data, "histone_marks", (2, 3))
        check_axis_size("histone_marks", marks, -1, self.config.num_marks, "config.num_marks")
        if marks.shape[-2] == 0:
            raise ValueError(f"data['histone_marks'] must have at least one bin, found shape {marks.shape}.")
        bins = marks.shape[:-1]
        known = ~jnp.isnan(marks)
        if data.get("mark_mask") is not None:
            mask = jnp.asarray(data["mark_mask"])
            if mask.shape != marks.shape:
                raise ValueError(f"data['mark_mask'] must have shape {marks.shape}, found {mask.shape}.")
            known = known & (mask != 0)
        starts = jnp.zeros(bins, bool)
        if data.get("sequence_start") is not None:
            starts = jnp.asarray(data["sequence_start"]).astype(bool)
            if starts.shape != bins:
                raise ValueError(f"data['sequence_start'] must have shape {bins}, found {starts.shape}.")
        valid = jnp.ones(bins, bool)
        if data.get("length") is not None:
            length = jnp.asarray(data["length"])
            if length.shape != bins[:-1]:
                raise ValueError(f"data['length'] must have shape {bins[:-1]}, found {length.shape}.")
            valid = jnp.arange(bins[-1]) < length[..., None]
        self._refuse_values(marks, known & valid[..., None])
        return marks, known, starts, valid

    def _refuse_values(self, marks, known) -> None:
        if isinstance(marks, jax.core.Tracer) or isinstance(known, jax.core.Tracer):
            return
        values = np.asarray(marks)[np.asarray(known)]
        kind = self.config.emission
        if kind == "bernoulli":
            bad, expected = (values < 0) | (values > 1), "0 or 1 (or an expected presence between)"
        elif kind == "gaussian":
            bad, expected = ~np.isfinite(values), "finite"
        else:
            bad, expected = ~((values >= 0) & np.isfinite(values)), "finite and not negative"
        if bad.any():
            raise ValueError(
                f"data['histone_marks'] must be {expected} with config.emission={kind!r}, found {values[bad][0]:.6g}; "
                "other emissions take counts ('poisson', 'negative_binomial') and signal ('gaussian')."
            )

    def _rows(self, data) -> tuple[Float[Array, "... states"], Bool[Array, "..."], Bool[Array, "..."]]:
        """Log-likelihoods of all bins in each state, where sequences begin, and which bins there are."""
        marks, known, starts, valid = self._arrays(data)
        known = known & valid[..., None]
        marks = jnp.where(known, marks, 0.0)
        shift = self._shift(data, marks)
        if shift is not None and shift.ndim == 3 and marks.ndim == 3:
            rows = jax.vmap(self._log_likelihoods)(marks, known, shift)
        elif marks.ndim == 3:
            rows = jax.vmap(functools.partial(self._log_likelihoods, shift=shift))(marks, known)
        else:
            rows = self._log_likelihoods(marks, known, shift)
        return rows, starts, valid

    def _shift(self, data, marks) -> Array | None:
        if not self.config.use_cell_type_conditioning:
            if data.get("cell_type") is not None:
                raise ValueError("data['cell_type'] needs config.use_cell_type_conditioning=True.")
            return None
        if data.get("cell_type") is None:
            raise KeyError("data['cell_type'] is needed with config.use_cell_type_conditioning=True.")
        weights = jnp.asarray(data["cell_type"])
        batch = marks.shape[:-2]
        if jnp.issubdtype(weights.dtype, jnp.integer) and weights.shape in ((), batch):
            weights = jax.nn.one_hot(weights, self.config.num_cell_types)
        if weights.shape not in ((self.config.num_cell_types,), (*batch, self.config.num_cell_types)):
            raise ValueError(
                f"data['cell_type'] must be numbers {batch or '()'} or weights ({self.config.num_cell_types},), for "
                f"each row of a batch; found shape {weights.shape}."
            )
        return jnp.tensordot(weights.astype(marks.dtype), self.cell_type_shift[...], 1)

    def _log_likelihoods(self, marks, known, shift=None) -> Float[Array, "length states"]:
        shift = 0.0 if shift is None else shift
        kind = self.config.emission
        if kind in ("bernoulli", "multinomial"):
            function = getattr(emission_likelihoods, kind)
            return function(marks, known, self.emission_logits[...].astype(marks.dtype) + shift)
        if kind == "gaussian":
            mean = self.emission_mean[...].astype(marks.dtype) + shift
            return emission_likelihoods.gaussian(marks, known, mean, self._log_variance().astype(marks.dtype))
        log_mean = self.emission_log_mean[...].astype(marks.dtype) + shift
        if kind == "poisson":
            return emission_likelihoods.poisson(marks, known, log_mean)
        log_dispersion = self.emission_log_dispersion[...].astype(marks.dtype)
        return emission_likelihoods.negative_binomial(marks, known, log_mean, log_dispersion)


@functools.partial(jax.jit, static_argnums=0)
def _compiled(graph, state, data) -> dict[str, Array]:
    return nnx.merge(graph, state)._outputs(data)


def _decode(initial, transition, rows, starts, valid, *, temperature) -> dict[str, Array]:
    initial, transition = initial.astype(rows.dtype), transition.astype(rows.dtype)
    exact = hmm.posterior(initial, transition, rows, starts=starts, valid=valid)
    soft = exact
    if temperature != 1.0:
        soft = hmm.posterior(initial, transition, rows, starts=starts, valid=valid, temperature=temperature)
    path = hmm.viterbi(*jax.lax.stop_gradient((initial, transition, rows)), starts=starts, valid=valid)
    return {
        "state_probabilities": soft.probabilities,
        "state_posteriors": exact.probabilities,
        "viterbi_path": jnp.where(valid, path.states, -1),
        "log_likelihood": exact.log_likelihood,
    }


def _log(probability: np.ndarray) -> np.ndarray:
    """Logarithm of a probability; of 0 a number so low that it comes back as 0."""
    value = np.asarray(probability, np.float64)
    return np.where(value > 0, np.log(np.where(value > 0, value, 1.0)), _IMPOSSIBLE)
