"""Kernel ridge regression whose settings are chosen by leaving out one sample at a time, in closed form.

The kernel is Gaussian; above a number of samples it is that of a random part of them (Nystroem's approximation). The
length scale is chosen for all outputs together, the penalty for each: the error of each sample, predicted from all the
others, follows from one eigendecomposition (Rasmussen and Williams 2006, Gaussian Processes for Machine Learning, 5.4).
Host and float64 where sums are long.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

_SCALES = (0.3, 1.0, 3.0, 10.0)  # squared length scales to choose from, in units of the median squared distance
_PENALTIES = 10.0 ** np.arange(-2.0, 4.1, 0.5)
_FEW = 256  # centres by which the length scale is chosen
_JITTER = 1e-6  # of the kernel of the centres, whose largest value is 1


class KernelRidge(NamedTuple):
    """Fitted regression.

    Attributes
    ----------
    centres
        Inputs that the kernel is taken to.
    squared_scale
        Squared distance at which the kernel has fallen to 1/e.
    coefficients
        Of the kernel to each centre.
    constant
        Mean of each output.
    explained
        Share of each output's variance that is predicted for samples left out.
    """

    centres: Float[Any, "centres inputs"]
    squared_scale: Any
    coefficients: Float[Any, "centres outputs"]
    constant: Float[Any, " outputs"]
    explained: Float[Any, " outputs"]

    def predict(self, inputs: Float[Any, "samples inputs"], *, library: Any = np) -> Float[Any, "samples outputs"]:
        """Expected outputs, by ``library``, numpy or jax.numpy."""
        squares = (inputs**2).sum(1)[:, None] + (self.centres**2).sum(1) - 2.0 * inputs @ self.centres.T
        kernel = library.exp(-library.maximum(squares, 0.0) / self.squared_scale)
        return self.constant + kernel @ self.coefficients


def fit_kernel_ridge(
    inputs: Float[np.ndarray, "samples inputs"],
    outputs: Float[np.ndarray, "samples outputs"],
    n_centres: int,
    rng: np.random.Generator,
) -> KernelRidge:
    """Fit the regression.

    Parameters
    ----------
    inputs
        Inputs, on scales that may be compared.
    outputs
        Outputs.
    n_centres
        Largest number of centres; with as many samples or fewer each sample is one, and the regression is exact.
    rng
        Generator that chooses the centres.
    """
    from scipy.spatial.distance import cdist

    inputs, outputs = np.asarray(inputs, np.float64), np.asarray(outputs, np.float64)
    samples = len(inputs)
    chosen = np.arange(samples) if samples <= n_centres else np.sort(rng.choice(samples, n_centres, replace=False))
    centres = inputs[chosen]
    among = cdist(centres, centres, "sqeuclidean")
    middle = float(np.median(among[np.triu_indices(len(centres), 1)])) if len(centres) > 1 else 1.0
    constant = outputs.mean(0)
    centred, variance = outputs - constant, np.maximum(outputs.var(0), 1e-12)
    scales = [max(scale * middle, 1e-12) for scale in _SCALES]
    # Few centres tell the scale; the eigendecompositions take the time.
    few = slice(None) if len(centres) <= _FEW else np.sort(rng.choice(len(centres), _FEW, replace=False))
    errors = [
        (_fit_scale(inputs, centred, centres[few], among[few][:, few], scale)[1] / variance).mean() for scale in scales
    ]
    squared_scale = scales[int(np.argmin(errors))]
    coefficients, error = _fit_scale(inputs, centred, centres, among, squared_scale)
    return KernelRidge(centres, squared_scale, coefficients, constant, 1.0 - error / variance)


def _kernel(left: np.ndarray, right: np.ndarray, squared_scale: float) -> np.ndarray:
    from scipy.spatial.distance import cdist

    return np.exp(-cdist(np.asarray(left, np.float64), right, "sqeuclidean") / squared_scale)


def _fit_scale(
    inputs: np.ndarray, outputs: np.ndarray, centres: np.ndarray, among: np.ndarray, squared_scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients, and the mean squared error of samples left out, at the best penalty of each output."""
    samples = len(inputs)
    # Features whose products are the kernel of the centres, and close to it elsewhere.
    value, vector = np.linalg.eigh(np.exp(-among / squared_scale) + _JITTER * np.eye(len(centres)))
    root = vector / np.sqrt(np.maximum(value, _JITTER))
    features = _kernel(inputs, centres, squared_scale) @ root
    squares, axes = np.linalg.eigh(features.T @ features)
    squares = np.maximum(squares, 0.0)
    features = features @ axes
    product = features.T @ outputs
    error = np.full(outputs.shape[1], np.inf)
    coefficients = np.zeros((len(centres), outputs.shape[1]))
    for penalty in _PENALTIES:
        weight = 1.0 / (squares + penalty)
        solution = product * weight[:, None]
        # The mean is fitted too: one more degree of freedom.
        leverage = np.minimum(features**2 @ weight + 1.0 / samples, 1.0 - 1e-6)
        left_out = (((outputs - features @ solution) / (1.0 - leverage)[:, None]) ** 2).mean(0)
        better = left_out < error
        error[better] = left_out[better]
        coefficients[:, better] = root @ (axes @ solution[:, better])
    return coefficients, error
