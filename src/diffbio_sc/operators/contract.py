"""The contract that all operators keep: configuration, ``apply``, ``loss``, ``fit``, and one-file saving."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from diffbio_sc._compiled import compiled_turn, full_products, one_thread_at_a_time
from diffbio_sc.numerics.placing import device_copy
from diffbio_sc.operators.config import OperatorConfig
from diffbio_sc.training import storage
from diffbio_sc.training.report import FitReport

__all__ = [
    "FILE_FORMAT",
    "FitReport",
    "FittedStatistic",
    "NotFittedWarning",
    "Operator",
    "OperatorConfig",
    "as_float_array",
    "check_axis_size",
]

FILE_FORMAT = 1


class NotFittedWarning(UserWarning):
    """A network was applied before it was fitted."""


class FittedStatistic(nnx.Variable):
    """A quantity that ``fit`` estimates from data and that no gradient step changes."""


def as_float_array(data: Mapping[str, Any], key: str, ranks: Iterable[int]) -> Float[Array, "..."]:
    """Return ``data[key]`` as a floating-point array, checking its number of axes.

    Parameters
    ----------
    data
        Arrays by name; integers, booleans, lists and numpy arrays are taken too.
    key
        Name of the array.
    ranks
        Numbers of axes that are allowed.

    Returns
    -------
    The array: float32, or as it was if already of a JAX floating-point type.

    Raises
    ------
    TypeError
        If the value is sparse or does not hold real numbers.
    ValueError
        If the number of axes is another.
    """
    value = data[key]
    _refuse_sparse(key, value)
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
    if not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise TypeError(f"data[{key!r}] must hold real numbers, found dtype {value.dtype}.")
    if isinstance(value, jax.Array):
        array = value
    else:
        array = device_copy(value, value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else np.float32)
    ranks = tuple(ranks)
    if array.ndim not in ranks:
        raise ValueError(f"data[{key!r}] must have {' or '.join(map(str, ranks))} axes, found shape {array.shape}.")
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(jnp.float32)


def check_axis_size(key: str, array: Array, axis: int, size: int, meaning: str) -> None:
    """Raise ValueError unless ``array`` has ``size`` entries along ``axis``.

    Parameters
    ----------
    key
        Name of the array in ``data``.
    array
        The array.
    axis
        Axis to check, may be negative.
    size
        Entries expected.
    meaning
        Where the expectation comes from, as in ``"config.n_genes"``.
    """
    if array.shape[axis] != size:
        raise ValueError(
            f"data[{key!r}] must have {size} entries along axis {axis} ({meaning}), found shape {array.shape}."
        )


class Operator(nnx.Module):
    """A differentiable operator on a dict of arrays.

    Subclasses set the class attributes and write ``__call__`` (the new outputs), ``loss``, and ``fit`` where a
    better method than gradient descent exists.

    Parameters
    ----------
    config
        Settings of the operator.
    rngs
        Random streams of the initial parameters.

    Attributes
    ----------
    config_class
        Class that ``config`` must have.
    required_keys, optional_keys
        Names that the operator reads from ``data``.
    is_network
        Whether the outputs mean nothing before training. Such an operator warns when it is applied unfitted.
    loss_takes_weights
        Whether ``loss`` is an average over samples that follows ``data["sample_weight"]`` when that is there.
        :func:`diffbio_sc.training.train` says what it does with it.
    """

    config_class: ClassVar[type[OperatorConfig]] = OperatorConfig
    required_keys: ClassVar[tuple[str, ...]] = ()
    optional_keys: ClassVar[tuple[str, ...]] = ()
    is_network: ClassVar[bool] = False
    loss_takes_weights: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("__call__", "loss"):  # which users call in programs and gradients of their own
            if name in cls.__dict__:
                setattr(cls, name, full_products()(cls.__dict__[name]))

    def __init__(self, config: OperatorConfig, *, rngs: nnx.Rngs):
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"{type(self).__name__} takes a {self.config_class.__name__}, found {type(config).__name__}."
            )
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"rngs must be flax.nnx.Rngs, such as nnx.Rngs(0), found {rngs!r}.")
        self.config = config
        if self.is_network:
            # An array, not a Python bool: it is saved with the rest, and setting it compiles nothing anew.
            self.fitted = FittedStatistic(device_copy(False))

    def apply(
        self, data: Mapping[str, Any], state: Any = None, metadata: Any = None
    ) -> tuple[dict[str, Any], Any, Any]:
        """Add the operator's outputs to ``data``.

        Parameters
        ----------
        data
            Arrays by name. Names that the operator does not know pass through.
        state, metadata
            Passed through unchanged.

        Returns
        -------
        The inputs and outputs in one dict, ``state`` and ``metadata``.

        Raises
        ------
        KeyError
            If a required name is missing.
        TypeError
            If an input of the operator is a sparse matrix.

        Warns
        -----
        NotFittedWarning
            If the operator is a network that was neither fitted nor marked so.
        """
        self.check_keys(data)
        self._warn_if_unfitted()
        return {**data, **_in_turn(self, data)}, state, metadata

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Array]:
        """Return the new outputs alone."""
        raise NotImplementedError(f"{type(self).__name__} is abstract: it has no __call__.")

    def loss(self, data: Mapping[str, Any]) -> Float[Array, ""]:
        """Return the scalar that ``fit`` lowers."""
        raise NotImplementedError(f"{type(self).__name__} is abstract: it has no loss.")

    def fit(self, data: Mapping[str, Any], *arguments: Any, **options: Any) -> FitReport:
        """Lower ``loss`` by gradient descent on minibatches.

        Parameters
        ----------
        data
            Arrays by name, samples along the first axis.
        arguments, options
            Further arguments of :func:`diffbio_sc.training.train`.

        Returns
        -------
        History, whether the stopping rule was met, epochs and seconds.
        """
        # An open signature, because operators with a better method than this have options of their own.
        from diffbio_sc.training.loop import train

        with compiled_turn():
            return train(self, data, *arguments, **options)

    def check_keys(self, data: Mapping[str, Any]) -> None:
        """Raise KeyError if a required key is missing, TypeError if an input is sparse."""
        missing = [key for key in self.required_keys if key not in data]
        if missing:
            needed = ", ".join(f"data[{key!r}]" for key in missing)
            raise KeyError(f"{type(self).__name__} needs {needed}; found the keys {sorted(map(str, data))}.")
        for key in (*self.required_keys, *self.optional_keys):
            if key in data:
                _refuse_sparse(key, data[key])

    def mark_fitted(self) -> None:
        """Say that the parameters are trained, after a training loop of one's own; ``fit`` does so itself."""
        if self.is_network:
            self.fitted[...] = device_copy(True)

    def _warn_if_unfitted(self) -> None:
        if not self.is_network:
            return
        # Traced variables mean that the operator is just being trained, or that the flag cannot be read.
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(nnx.state(self))):
            return
        if not bool(self.fitted[...]):
            warnings.warn(
                f"{type(self).__name__} is a network that was not fitted: its outputs come from initial parameters. "
                "Call fit(), or load a fitted one; after training in your own loop call mark_fitted().",
                NotFittedWarning,
                stacklevel=3,
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write configuration and all variables into one file (``.npz``, no pickle), at exactly ``path``.

        Parameters
        ----------
        path
            File to write; its folder must exist. An existing file is replaced in one step.
        """
        header = {"kind": "operator", "format": FILE_FORMAT, **self.identity()}
        storage.write_file(path, header, storage.variables(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, rngs: nnx.Rngs | None = None, **parts: Any) -> Self:
        """Read an operator that ``save`` wrote.

        Parameters
        ----------
        path
            File to read.
        rngs
            Random streams to build the operator with before its variables, random keys included, are replaced by
            the saved ones. Needed only if the operator keeps streams of other names than the default.
        parts
            Modules that the operator was built with beside its configuration, of the same structure; their variables
            are replaced too.

        Returns
        -------
        The operator, with the same outputs bit for bit.

        Raises
        ------
        ValueError
            If the file holds another operator, another format, or other arrays than the configuration asks for.
        """
        where = repr(os.fspath(path))
        header, arrays = storage.read_file(path, kind="operator", newest_format=FILE_FORMAT)
        if header["operator"] != cls.__name__:
            raise ValueError(f"{where} holds a {header['operator']}, not a {cls.__name__}.")
        try:
            config = cls.config_class.from_dict(header["config"])
        except ValueError as error:
            raise ValueError(f"{where}, written by diffbio_sc {header['version']}: {error}") from error
        operator = cls.from_config(config, rngs=nnx.Rngs(0) if rngs is None else rngs, **parts)
        nnx.update(operator, storage.restore(nnx.state(operator), arrays, where=where))
        return operator

    @classmethod
    def from_config(cls, config: OperatorConfig, *, rngs: nnx.Rngs, **parts: Any) -> Self:
        """Make an operator of its configuration (and parts), as ``load`` does before it reads the parameters."""
        return cls(config, rngs=rngs, **parts)

    def identity(self) -> dict[str, Any]:
        """Return what a file needs to say about this operator: class name, package version and configuration."""
        from diffbio_sc import __version__

        return {"operator": type(self).__name__, "version": __version__, "config": self.config.to_dict()}


@one_thread_at_a_time
def _in_turn(operator: Operator, data: Mapping[str, Any]) -> dict[str, Any]:
    return operator(data)


def _refuse_sparse(key: str, value: Any) -> None:
    if hasattr(value, "tocsr"):
        raise TypeError(
            f"data[{key!r}] is a scipy sparse matrix, operators take arrays: pass data[{key!r}].toarray(), "
            "or use the function of diffbio_sc.tl, which streams sparse matrices."
        )
