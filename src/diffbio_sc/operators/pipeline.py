"""Operators whose outputs feed others, as one operator: steps trained through one another.

Steps run in order on one dict of arrays. Each adds its outputs, and a later step reads them under the names that
``inputs`` gives: ``inputs={"peaks": {"signal": "smoothed_signal"}}`` lets the step ``peaks`` take the output
``smoothed_signal`` of an earlier step for its input ``signal``. The loss is a weighted sum of losses of steps and of
means of outputs, so that a gradient step on it reaches every parameter upstream.

``fit`` lowers that loss for all parameters at once; ``fit_in_turn`` gives each step to its own ``fit``, one after the
other, which is what a chain of tools does, and a good start for the former.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from flax import nnx
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffbio_sc.operators.config import OperatorConfig
from diffbio_sc.operators.contract import FitReport, Operator

_WHOLE = "whole_data"
_Triples = tuple[tuple[str, str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineConfig(OperatorConfig):
    """What a :class:`Pipeline` is made of; made by it.

    Parameters
    ----------
    steps
        Name, class and configuration (as JSON) of each step.
    inputs
        Step, name of its input, and name under which that is found.
    outputs
        Step, name of its output, and name under which that is put.
    losses
        Step or output, and its weight.

    Examples
    --------
    >>> from flax import nnx
    >>> from diffbio_sc.operators import Pipeline, epigenomics
    >>> smoother = epigenomics.CoverageSmoother(epigenomics.CoverageSmootherConfig(), rngs=nnx.Rngs(0))
    >>> Pipeline({"smooth": smoother}).config.steps[0][:2]
    ('smooth', 'CoverageSmoother')
    """

    steps: _Triples = ()
    inputs: _Triples = ()
    outputs: _Triples = ()
    losses: tuple[tuple[str, float], ...] = ()


class Pipeline(Operator):
    """Several operators as one: ``apply``, ``loss``, ``fit`` and ``save`` as of any other.

    Parameters
    ----------
    steps
        Operators by name, in the order in which they run. They are held, not copied: training the pipeline trains them.
    inputs
        For a step, which array it reads for which of its inputs, where the names differ.
    outputs
        For a step, under which name to put an output. Needed where two steps have outputs of one name, or an output
        that of an input: nothing is ever overwritten.
    losses
        Terms of the loss with their weights: the name of a step stands for its loss, that of an output for its mean.
        Default: the loss of the last step.

    Notes
    -----
    Inputs of ``apply``: those of the steps that no earlier step puts out, in the shapes that the steps take.

    Outputs: those of all steps, under the names that ``outputs`` gives them, in the shapes that the steps put out:
    ``histone_marks`` of (length, num_marks), for example.

    Raises
    ------
    TypeError
        If a step is no operator.
    ValueError
        If there is no step, or ``inputs``, ``outputs`` or ``losses`` name a step that is not there.

    Examples
    --------
    >>> import numpy as np
    >>> from flax import nnx
    >>> from diffbio_sc.operators import Pipeline, epigenomics
    >>> config = epigenomics.ChromatinStateConfig(num_states=2, num_marks=1)
    >>> pipeline = Pipeline(
    ...     {
    ...         "presence": epigenomics.MarkBinarizer(epigenomics.MarkBinarizerConfig(num_marks=1), rngs=nnx.Rngs(0)),
    ...         "states": epigenomics.ChromatinStateAnnotator(config, rngs=nnx.Rngs(0)),
    ...     },
    ...     losses={"states": 1.0, "presence_bound": -1.0},
    ... )
    >>> counts = np.random.default_rng(0).poisson(np.repeat([0.5, 6.0], 50))[:, None]
    >>> sorted(pipeline.fit_in_turn({"mark_counts": counts}))
    ['presence', 'states']
    >>> before = float(pipeline.loss({"mark_counts": counts}))
    >>> report = pipeline.fit({"mark_counts": counts}, max_epochs=20, learning_rate=0.01)
    >>> bool(report.history["loss"][-1] < before)
    True
    """

    config_class: ClassVar[type[OperatorConfig]] = PipelineConfig
    config: PipelineConfig

    def __init__(
        self,
        steps: Mapping[str, Operator],
        *,
        inputs: Mapping[str, Mapping[str, str]] | None = None,
        outputs: Mapping[str, Mapping[str, str]] | None = None,
        losses: Mapping[str, float] | None = None,
    ):
        if not steps:
            raise ValueError("steps must name at least one operator.")
        for name, step in steps.items():
            if not isinstance(step, Operator):
                raise TypeError(f"steps[{name!r}] must be an operator, found {type(step).__name__}.")
        for argument, links in (("inputs", inputs), ("outputs", outputs)):
            unknown = sorted(set(links or {}) - set(steps))
            if unknown:
                raise ValueError(f"{argument} names steps that are not there: {unknown}; steps: {list(steps)}.")
        losses = {list(steps)[-1]: 1.0} if losses is None else losses
        if not losses:
            raise ValueError("losses must name at least one step or output.")
        config = PipelineConfig(
            steps=tuple(
                (name, type(step).__name__, json.dumps(step.config.to_dict(), sort_keys=True))
                for name, step in steps.items()
            ),
            inputs=_triples(inputs),
            outputs=_triples(outputs),
            losses=tuple((name, float(weight)) for name, weight in losses.items()),
        )
        super().__init__(config, rngs=nnx.Rngs(0))
        self.steps = nnx.Dict(dict(steps))

    @classmethod
    def from_config(cls, config: OperatorConfig, *, rngs: nnx.Rngs, **parts: Any) -> Pipeline:
        """Make a pipeline with new parameters of the operators that a configuration names.

        Parameters
        ----------
        config
            Configuration.
        rngs
            Random streams of the steps.
        parts
            For a step that is built with further modules, a dict of these, by the name of the step.
        """
        assert isinstance(config, PipelineConfig)
        steps = {}
        for name, kind, fields in config.steps:
            operator = _operator_class(kind)
            steps[name] = operator.from_config(
                operator.config_class.from_dict(json.loads(fields)), rngs=rngs, **parts.get(name, {})
            )
        links: dict[str, dict[str, dict[str, str]]] = {"inputs": {}, "outputs": {}}
        for argument, found in links.items():
            for step, key, other in getattr(config, argument):
                found.setdefault(step, {})[key] = other
        return cls(steps, **links, losses=dict(config.losses))  # type: ignore[arg-type]

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Return the outputs of all steps."""
        found = dict(data)
        for name, step in self._named_steps():
            self._add(found, name, step(self._inputs_of(name, found)))
        return {key: value for key, value in found.items() if key not in data}

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        """Return the weighted sum of losses of steps and means of outputs that ``losses`` names."""
        terms = self.loss_terms(data)
        return sum((weight * terms[name] for name, weight in self.config.losses), jnp.zeros(()))

    def loss_terms(self, data: Mapping[str, Any]) -> dict[str, Float[Array, ""]]:
        """Return the terms of the loss, without their weights."""
        wanted = [name for name, _ in self.config.losses]
        names = [name for name, _, _ in self.config.steps]
        found, terms = dict(data), {}
        for name, step in self._named_steps():
            arrays = self._inputs_of(name, found)
            if name in wanted:
                terms[name] = step.loss(arrays)
            if name != names[-1] or any(one not in names and one not in found for one in wanted):
                self._add(found, name, step(arrays))
        missing = [one for one in wanted if one not in names and one not in found]
        if missing:
            raise KeyError(
                f"losses names {missing}, neither steps {names} nor outputs; found the keys {sorted(found)}."
            )
        return {one: terms[one] if one in terms else jnp.mean(found[one]) for one in wanted}

    def fit(self, data: Mapping[str, Any], *arguments: Any, **options: Any) -> FitReport:
        """Lower ``loss`` by gradient descent on the parameters of all steps at once.

        Parameters
        ----------
        data
            Arrays by name.
        arguments, options
            Further arguments of :func:`diffbio_sc.training.train`. Without ``batch_size`` and ``sample_keys`` each
            step of the descent sees all data, and first axes may differ.

        Returns
        -------
        History, whether the stopping rule was met, epochs and seconds.
        """
        if not {"batch_size", "sample_keys"} & set(options):
            # One sample that stands for all of the data, which every batch is then given whole.
            data = {**data, _WHOLE: jnp.zeros(1)}
            options |= {"batch_size": None, "sample_keys": [_WHOLE]}
        return super().fit(data, *arguments, **{"description": "pipeline", **options})

    def fit_in_turn(
        self, data: Mapping[str, Any], options: Mapping[str, Mapping[str, Any] | None] | None = None
    ) -> dict[str, FitReport]:
        """Fit the steps one after the other, each by its own ``fit`` on what the fitted steps before it put out.

        Parameters
        ----------
        data
            Arrays by name.
        options
            For a step, the options of its ``fit``; None leaves the step as it is.

        Returns
        -------
        The report of each step that was fitted.
        """
        options = options or {}
        unknown = sorted(set(options) - {name for name, _, _ in self.config.steps})
        if unknown:
            raise ValueError(f"options names steps that are not there: {unknown}.")
        found, reports = dict(data), {}
        for name, step in self._named_steps():
            arrays = self._inputs_of(name, found)
            own = options.get(name, {})
            if own is not None:
                reports[name] = step.fit(arrays, **own)
            self._add(found, name, step(arrays))
        return reports

    def check_keys(self, data: Mapping[str, Any]) -> None:
        """Raise KeyError if the first step lacks an input, TypeError if one is sparse; others follow as they run."""
        name, step = next(self._named_steps())
        step.check_keys(self._inputs_of(name, data, check=False))

    def mark_fitted(self) -> None:
        """Say of all steps that their parameters are trained."""
        for _, step in self._named_steps():
            step.mark_fitted()

    def _warn_if_unfitted(self) -> None:
        for _, step in self._named_steps():
            step._warn_if_unfitted()

    def _named_steps(self) -> Iterator[tuple[str, Operator]]:
        # The order is that of the configuration: a dict of modules that went through a transformation has lost its own.
        for name, _, _ in self.config.steps:
            yield name, self.steps[name]

    def _inputs_of(self, name: str, found: Mapping[str, Any], *, check: bool = True) -> dict[str, Any]:
        links = {key: source for step, key, source in self.config.inputs if step == name}
        missing = sorted(set(links.values()) - set(found))
        if missing:
            raise KeyError(f"step {name!r} reads {missing}, which are neither data nor outputs; found {sorted(found)}.")
        arrays = {**found, **{key: found[source] for key, source in links.items()}}
        if check:
            try:
                self.steps[name].check_keys(arrays)
            except KeyError as error:
                raise KeyError(f"step {name!r}: {error.args[0]} Name what it reads in inputs.") from error
        return arrays

    def _add(self, found: dict[str, Any], name: str, result: Mapping[str, Any]) -> None:
        names = {key: other for step, key, other in self.config.outputs if step == name}
        absent = sorted(set(names) - set(result))
        if absent:
            raise KeyError(f"outputs names {absent} of step {name!r}, which puts out {sorted(result)}.")
        renamed = {names.get(key, key): value for key, value in result.items()}
        taken = sorted(set(renamed) & set(found))
        if taken:
            raise ValueError(
                f"step {name!r} puts out {taken}, which are there already: give them other names, as "
                f"outputs={{{name!r}: {{{taken[0]!r}: {name + '_' + taken[0]!r}}}}}."
            )
        found.update(renamed)


def _triples(links: Mapping[str, Mapping[str, str]] | None) -> _Triples:
    return tuple((step, key, other) for step, pairs in (links or {}).items() for key, other in pairs.items())


def _operator_class(name: str) -> type[Operator]:
    """Operator of a name: one of this package, or of those that are loaded. A file never says what to import."""
    from diffbio_sc.operators import epigenomics, multiomics

    for package in (epigenomics, multiomics):
        if name in package.__all__:
            return getattr(package, name)
    seen, known = [Operator], {}
    while seen:
        for kind in seen.pop().__subclasses__():
            known[kind.__name__] = kind
            seen.append(kind)
    if name not in known:
        raise ValueError(
            f"there is no operator {name!r}: import the module that defines it before the pipeline is read."
        )
    return known[name]
