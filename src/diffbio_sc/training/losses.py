"""Losses that several operators share: finite with finite gradients wherever their arguments are legal.

Logits go in rather than probabilities, what is not counted is left out by ``where``, and nothing is the logarithm of a
probability plus a small number.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = ["balanced_loss", "binary_cross_entropy", "entropy", "masked_mean", "poisson_deviance", "squared_error"]


def masked_mean(values: Float[Array, "..."], counted: Bool[Array, "..."] | None = None) -> Float[Array, ""]:
    """Mean of the values that are counted, 0 if none is; default all.

    Parameters
    ----------
    values
        Values; those that are not counted may be anything, NaN too, without an effect on value or gradient as long as
        they come from finite numbers.
    counted
        Which of them are counted, of the same shape.

    Returns
    -------
    The mean, a scalar.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffbio_sc.operators import losses
    >>> float(losses.masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])))
    2.0
    """
    if counted is None:
        return values.mean()
    return jnp.where(counted, values, 0.0).sum() / jnp.maximum(counted.sum(), 1)


def entropy(probabilities: Float[Array, "... outcomes"]) -> Float[Array, ""]:
    r"""Mean entropy of distributions along the last axis, in nats.

    Added to a loss with a positive weight it makes distributions sparse, with a negative one even. A probability of
    exactly 0 adds nothing and has gradient 0: it stays where it is.

    Parameters
    ----------
    probabilities
        Distributions along the last axis, such as ``proportions``.

    Returns
    -------
    Mean over the distributions of :math:`-\sum_k p_k \log p_k`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffbio_sc.operators import losses
    >>> round(float(losses.entropy(jnp.array([[0.5, 0.5], [1.0, 0.0]]))), 3)
    0.347
    """
    positive = probabilities > 0
    logs = jnp.log(jnp.where(positive, probabilities, 1.0))
    return -jnp.where(positive, probabilities * logs, 0.0).sum(-1).mean()


def binary_cross_entropy(
    logits: Float[Array, "..."], targets: Float[Array, "..."], counted: Bool[Array, "..."] | None = None
) -> Float[Array, ""]:
    r"""Mean cross-entropy of yes-or-no targets, from logits, in nats.

    Parameters
    ----------
    logits
        Log-odds.
    targets
        1, 0, or a probability between; NaN means unknown and is left out.
    counted
        Which of them are counted; default all that are known.

    Returns
    -------
    Mean of :math:`-y \log p - (1 - y) \log(1 - p)` with :math:`p = 1 / (1 + e^{-z})`; 0 if none is counted.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffbio_sc.operators import losses
    >>> round(float(losses.binary_cross_entropy(jnp.array([0.0, 80.0]), jnp.array([1.0, jnp.nan]))), 3)
    0.693
    """
    known = ~jnp.isnan(targets)
    counted = known if counted is None else known & counted
    targets = jnp.where(counted, targets, 0.0)
    # softplus(z) - y z = -y log p - (1 - y) log(1 - p)
    return masked_mean(jax.nn.softplus(logits) - targets * logits, counted)


def squared_error(
    reconstructed: Float[Array, "..."], values: Float[Array, "..."], counted: Bool[Array, "..."] | None = None
) -> Float[Array, ""]:
    """Mean squared difference of a reconstruction from values, over those that are counted.

    Parameters
    ----------
    reconstructed, values
        What a model expects, and what is.
    counted
        Which values are counted; default all.

    Returns
    -------
    The mean, a scalar.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffbio_sc.operators import losses
    >>> float(losses.squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
    2.0
    """
    counted = jnp.ones(jnp.shape(values), bool) if counted is None else counted
    return masked_mean(jnp.where(counted, reconstructed - values, 0.0) ** 2, counted)


def poisson_deviance(
    counts: Float[Array, "..."], mean: Float[Array, "..."], *, smallest: float = 1e-6
) -> Float[Array, "..."]:
    """Poisson deviance of each count from its mean: twice the log-likelihood that a perfect mean would gain.

    Parameters
    ----------
    counts, mean
        Counts, and what a model expects.
    smallest
        Means below this are taken for it.

    Returns
    -------
    Deviance of each count, of the shape of the counts, not negative.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffbio_sc.operators import losses
    >>> [round(float(each), 3) for each in losses.poisson_deviance(jnp.array([2.0, 0.0]), jnp.array([2.0, 1.0]))]
    [0.0, 2.0]
    """
    mean = jnp.maximum(mean, smallest)
    positive = counts > 0
    ratio = jnp.where(positive, counts, 1.0) / mean
    return 2.0 * (jnp.where(positive, counts * jnp.log(ratio), 0.0) - (counts - mean))


def balanced_loss(
    losses: Float[Array, " tasks"],
    gradient_norms: Float[Array, " tasks"],
    log_weights: Float[Array, " tasks"],
    *,
    initial_losses: Float[Array, " tasks"],
    alpha: float = 1.5,
    weighted: Float[Array, " tasks"] | None = None,
) -> Float[Array, ""]:
    r"""Sum of losses in weights that learn to let all tasks train at one rate (GradNorm).

    The weights are the number of tasks times softmax(``log_weights``), so that their mean stays 1. For everything else
    they are constants; their own gradient is that of the imbalance :math:`\sum_i |w_i G_i - \bar G r_i^\alpha|`,
    with norms :math:`G_i`, the mean :math:`\bar G` of :math:`w_i G_i`, and how far task i lags behind:
    :math:`r_i`, its loss over its initial loss, divided by the mean of that over the tasks. One training loop therefore
    serves both, and the weights keep their state in ``log_weights``.

    Parameters
    ----------
    losses
        Loss of each task.
    gradient_norms
        Norm of the gradient of each unweighted loss by what the tasks share; held constant.
    log_weights
        Parameter of the weights.
    initial_losses
        Losses at the start of training, positive.
    alpha
        How strongly tasks that lag behind are favoured; 0 makes all gradients equally long.
    weighted
        What is summed: the losses with factors of your own; default the losses.

    Returns
    -------
    The weighted sum; the imbalance adds to its gradient and not to its value.

    References
    ----------
    Chen et al. 2018, ICML: GradNorm.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffbio_sc.operators import losses
    >>> of_tasks, norms = jnp.array([0.5, 2.0]), jnp.array([1.0, 1.0])
    >>> float(losses.balanced_loss(of_tasks, norms, jnp.zeros(2), initial_losses=jnp.array([1.0, 2.0])))
    2.5
    """
    weights = len(losses) * jax.nn.softmax(log_weights)
    total = (jax.lax.stop_gradient(weights) * (losses if weighted is None else weighted)).sum()
    norms = weights * jax.lax.stop_gradient(gradient_norms)
    progress = jax.lax.stop_gradient(losses) / initial_losses
    progress = (progress / progress.mean()) ** alpha
    target = jax.lax.stop_gradient(norms.mean() * progress)
    imbalance = jnp.abs(norms - target).sum()
    return total + imbalance - jax.lax.stop_gradient(imbalance)
