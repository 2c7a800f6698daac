"""Attention blocks with rotary positions, within windows, and with contacts as a bias."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

_ROTARY_BASE = 10_000.0
_DISTANCE_KNOTS = 16
_NEVER = -1e30
"""Logit of a pair that must not be attended to: exp of it is exactly 0, and its gradient finite."""


def rotate(values: Float[Array, "batch tokens heads width"]) -> Float[Array, "batch tokens heads width"]:
    """Turn pairs of features by angles that grow with the position, so that products depend on distances alone."""
    tokens, width = values.shape[1], values.shape[3]
    frequencies = _ROTARY_BASE ** (-np.arange(0, width, 2) / width)
    angle = np.arange(tokens)[:, None] * frequencies  # in double precision: far tokens turn many times
    cos, sin = (jnp.asarray(part[:, None], values.dtype) for part in (np.cos(angle), np.sin(angle)))
    first, second = values[..., : width // 2], values[..., width // 2 :]
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], -1)


def distance_features(tokens: int, longest: int) -> Float[np.ndarray, "tokens knots"]:
    """Distances 0 to ``tokens - 1`` as hat functions of log(1 + distance), for functions of distance.

    Parameters
    ----------
    tokens
        Number of distances.
    longest
        Distance of the last knot.
    """
    share = np.log1p(np.arange(tokens)) / max(np.log1p(longest), 1e-6) * (_DISTANCE_KNOTS - 1)
    hats = 1.0 - np.abs(np.minimum(share, _DISTANCE_KNOTS - 1)[:, None] - np.arange(_DISTANCE_KNOTS))
    return np.maximum(hats, 0.0).astype(np.float32)


def by_distance(values: Float[Array, "*heads tokens"]) -> Float[Array, "*heads tokens tokens"]:
    """Spread a function of distance over all pairs."""
    tokens = values.shape[-1]
    return values[..., np.abs(np.subtract.outer(np.arange(tokens), np.arange(tokens)))]


class ContactPaths(nnx.Module):
    """How contacts enter a block: nothing at the start.

    The logits of attention of each head gain ``gate * logit of contact``. Attention is relative, so that a token with
    many contacts looks like one with few; what tokens in contact say is therefore also added up, weighted by contacts.

    Parameters
    ----------
    features, heads
        Width of tokens, and number of heads.
    rngs
        Random streams.
    """

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs):
        self.gate = nnx.Param(jnp.zeros(heads))
        self.added = nnx.Linear(features, features, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def bias(self, logits: Float[Array, "batch tokens tokens"]) -> Float[Array, "batch heads tokens tokens"]:
        """Return what is added to the logits of attention."""
        return self.gate[...][:, None, None] * logits[:, None]

    def message(
        self,
        logits: Float[Array, "batch tokens tokens"],
        values: Float[Array, "batch tokens features"],
        mask: Bool[Array, "batch tokens"],
    ) -> Float[Array, "batch tokens features"]:
        """Return the mean over tokens of what they say, weighted by contact."""
        weights = jax.nn.sigmoid(logits) * mask[:, None, :]
        number = jnp.maximum(mask.sum(1), 1)[:, None, None]
        return self.added(weights @ values / number)


class AttentionBlock(nnx.Module):
    """Attention and a feed-forward layer, each added to its input, after layer normalisation.

    Parameters
    ----------
    features, heads, intermediate
        Width of tokens, number of heads, and width of the feed-forward layer.
    window
        Tokens attend to those less than ``window`` tokens apart.
    dropout
        Share of activations left out in training.
    longest
        Largest number of tokens.
    takes_contacts
        Whether contacts bias the attention.
    rngs
        Random streams.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        intermediate: int,
        window: int,
        dropout: float,
        *,
        longest: int,
        takes_contacts: bool,
        rngs: nnx.Rngs,
    ):
        self.heads, self.window, self.longest = heads, window, min(longest, window)
        # Of distance behind and ahead: a head can look to one side. 0 at the start.
        self.offset_bias = nnx.Param(jnp.zeros((heads, 2, _DISTANCE_KNOTS)))
        self.before_attention = nnx.LayerNorm(features, rngs=rngs)
        self.query_key_value = nnx.Linear(features, 3 * features, use_bias=False, rngs=rngs)
        self.attended = nnx.Linear(features, features, rngs=rngs)
        self.before_forward = nnx.LayerNorm(features, rngs=rngs)
        self.widen = nnx.Linear(features, intermediate, rngs=rngs)
        self.narrow = nnx.Linear(intermediate, features, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, deterministic=True, rngs=rngs)
        self.contacts = ContactPaths(features, heads, rngs=rngs) if takes_contacts else None

    def __call__(
        self,
        tokens: Float[Array, "batch tokens features"],
        mask: Bool[Array, "batch tokens"],
        contacts: Float[Array, "batch tokens tokens"] | None = None,
    ) -> Float[Array, "batch tokens features"]:
        """Return tokens; those that are masked inform no other."""
        batch, number, features = tokens.shape
        projected = self.query_key_value(self.before_attention(tokens))
        query, key, value = jnp.split(projected.reshape(batch, number, self.heads, -1), 3, axis=-1)
        bias = message = None
        if self.contacts is not None and contacts is not None:
            bias = self.contacts.bias(contacts)
            message = self.contacts.message(contacts, value.reshape(batch, number, features), mask)
        found = attend(rotate(query), rotate(key), value, mask, bias, self.window, self._by_offset(number))
        found = self.attended(found.reshape(batch, number, features))
        tokens = tokens + self.dropout(found if message is None else found + message)
        hidden = jax.nn.gelu(self.widen(self.before_forward(tokens)))
        return tokens + self.dropout(self.narrow(hidden))

    def _by_offset(self, tokens: int) -> Float[Array, "heads offsets"]:
        """Bias by offset of the key from the query, from the farthest behind to the farthest ahead."""
        reach = min(tokens, self.window)
        behind, ahead = jnp.moveaxis(self.offset_bias[...] @ distance_features(reach, self.longest).T, 1, 0)
        return jnp.concatenate([behind[:, :0:-1], ahead], -1)


def attend(
    query: Float[Array, "batch tokens heads width"],
    key: Float[Array, "batch tokens heads width"],
    value: Float[Array, "batch tokens heads width"],
    mask: Bool[Array, "batch tokens"],
    bias: Float[Array, "batch heads tokens tokens"] | None,
    window: int,
    by_offset: Float[Array, "heads offsets"],
) -> Float[Array, "batch tokens heads width"]:
    """Attention to tokens that are not masked and less than ``window`` tokens apart.

    Above three windows of tokens, pairs that are too far apart are not computed: time and memory then grow with
    ``tokens * window``.

    Parameters
    ----------
    query, key, value
        Tokens of each head.
    mask
        Which tokens exist.
    bias
        What is added to the logits of pairs, or None.
    window
        Tokens that are farther apart do not attend to each other.
    by_offset
        What is added by offset of the key from the query, which is 0 in the middle.
    """
    tokens = query.shape[1]
    if tokens > 3 * window:
        return _attend_in_blocks(query, key, value, mask, bias, window, by_offset)
    offset = np.arange(tokens) - np.arange(tokens)[:, None]
    return _attend(query, key, value, _offset_bias(by_offset, offset, bias), _near(offset, window, mask[:, None, None]))


def _attend(query, key, value, bias, seen):
    return nnx.dot_product_attention(query, key, value, bias=jnp.where(seen, bias, _NEVER))


def _offset_bias(by_offset, offset, bias):
    middle = by_offset.shape[1] // 2
    added = by_offset[:, np.clip(offset + middle, 0, 2 * middle)]
    return added if bias is None else bias + added


def _near(offset, window, seen):
    return seen & jnp.asarray(np.abs(offset) < window)


def _attend_in_blocks(query, key, value, mask, bias, window, by_offset):
    """Blocks of ``window`` tokens, each with the keys of itself and its two neighbours."""
    batch, tokens, heads, width = query.shape
    blocks = -(-tokens // window)
    behind = blocks * window - tokens

    def padded(values, axis, before=window, after=window):
        pads = [(0, 0)] * values.ndim
        pads[axis] = (before, behind + after)
        return jnp.pad(values, pads)

    reach = np.arange(blocks)[:, None] * window + np.arange(3 * window)  # keys begin one window before the first token
    queries = padded(query, 1, 0, 0).reshape(batch, blocks, window, heads, width)
    keys, values = padded(key, 1)[:, reach], padded(value, 1)[:, reach]
    offset = np.arange(3 * window) - window - np.arange(window)[:, None]
    block_bias = None
    if bias is not None:
        rows = padded(padded(bias, 3), 2, 0, 0).reshape(*bias.shape[:2], blocks, window, -1)
        block_bias = jnp.take_along_axis(rows, jnp.asarray(reach)[None, None, :, None, :], axis=-1)
        block_bias = block_bias.transpose(0, 2, 1, 3, 4)
    seen = _near(offset, window, padded(mask, 1)[:, reach][:, :, None, None, :])
    found = _attend(queries, keys, values, _offset_bias(by_offset, offset, block_bias), seen)
    return found.reshape(batch, blocks * window, heads, width)[:, :tokens]
