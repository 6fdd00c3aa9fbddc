"""Multi-head attention. Shapes: see the glossary in `bart_hk.model.layers`.

Our own rather than Haiku's, which has no attention dropout, no cache and no weights out. Heads are
an outer axis, [B, H, T, K]: as [B, T, H, K] the same products took eight times as long on a CPU.
Masks are boolean, True = attend.
"""

import haiku as hk
import jax
import jax.numpy as jnp

from bart_hk import kernels
from bart_hk.model.layers import dropout, linear


def split_heads(x: jax.Array, heads: int, axis: int = -1) -> jax.Array:
    """[B, T, H K], or [H K, B, T] with axis=0, -> [B, H, T, K]."""
    if axis == 0:
        width, batch, length = x.shape
        return x.reshape(heads, width // heads, batch, length).transpose(2, 0, 3, 1)
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def merge_heads(x: jax.Array, axis: int = -1) -> jax.Array:
    """[B, H, T, K] -> [B, T, H K], or [H K, B, T] with axis=0."""
    batch, heads, length, width = x.shape
    if axis == 0:
        return x.transpose(1, 3, 0, 2).reshape(heads * width, batch, length)
    return x.swapaxes(1, 2).reshape(batch, length, heads * width)


def project_query(x: jax.Array, heads: int, inner: int, axis: int = -1) -> jax.Array:
    """`x` -> scaled queries, `inner` = H K wide; the scale comes after the bias, as in fairseq."""
    return linear(x, inner, "q_proj", axis) * (inner // heads) ** -0.5


def project_key_value(x: jax.Array, heads: int, inner: int) -> tuple[jax.Array, jax.Array]:
    """`x` -> keys [B, H, K, S], as products with few queries want them; values [B, H, S, K]."""
    key = split_heads(linear(x, inner, "k_proj"), heads)
    value = split_heads(linear(x, inner, "v_proj"), heads)
    return key.swapaxes(2, 3), value


def attend(
    query: jax.Array,  # [B, H, T, K], scaled
    key: jax.Array,  # [B, H, K, S]
    value: jax.Array,  # [B, H, S, K]
    mask: jax.Array,  # bool, broadcastable to [B, H, T, S]
    dropout_rate: float = 0.0,
    training: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention in float32: the mixed values [B, H, T, K] and the weights [B, H, T, S].

    A query that may attend nowhere (a fully padded row) gets uniform weights, never NaN.
    """
    scores = jnp.einsum("bhtk,bhks->bhts", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    dropped = dropout(weights, dropout_rate, training).astype(value.dtype)
    return jnp.einsum("bhts,bhsk->bhtk", dropped, value), weights


def attend_in_steps(
    query: jax.Array,  # [H K, B, W], scaled
    key: jax.Array,  # [B, H, K, S]
    value: jax.Array,  # [B, H, S, K]
    mask: jax.Array,  # bool [B, W, S] or [B, 1, S]
    with_weights: bool,
) -> tuple[jax.Array, jax.Array]:
    """`attend` over the first axis: float32 [H K, B, W], and the weights where they are wanted."""

    def on_a_cpu(
        query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return kernels.attend(query, key, value, mask, with_weights)

    def anywhere(
        query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        queries = split_heads(query.astype(key.dtype), key.shape[1], axis=0)
        mixed, weights = attend(queries, key, value, mask[:, None])
        weights = weights if with_weights else jnp.zeros(0, jnp.float32)
        return merge_heads(mixed, axis=0).astype(jnp.float32), weights

    return kernels.choose(key.dtype, (query, key, value, mask), on_a_cpu, anywhere)


def remember_and_attend(
    query: jax.Array,  # [H K, B, W], scaled
    key: jax.Array,  # [H K, B, W], this step's
    value: jax.Array,  # [H K, B, W]
    keys: jax.Array,  # [B, H, K, T W], of the steps so far
    values: jax.Array,  # [B, H, T W, K]
    mask: jax.Array,  # bool [B, W, T W]
    step: jax.Array,  # int32
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`attend` over a cache, to which this step's keys and values are written first: float32
    [H K, B, W] and the cache with them."""

    def anywhere(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        keys: jax.Array,
        values: jax.Array,
        mask: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        heads, slot = keys.shape[1], step * query.shape[2]
        new_key = split_heads(key, heads, axis=0).swapaxes(2, 3).astype(keys.dtype)
        new_value = split_heads(value, heads, axis=0).astype(values.dtype)
        keys = jax.lax.dynamic_update_slice(keys, new_key, (0, 0, 0, slot))
        values = jax.lax.dynamic_update_slice(values, new_value, (0, 0, slot, 0))
        queries = split_heads(query.astype(keys.dtype), heads, axis=0)
        mixed, _ = attend(queries, keys, values, mask[:, None])
        return merge_heads(mixed, axis=0).astype(jnp.float32), keys, values

    arguments = (query, key, value, keys, values, mask, step)
    return kernels.choose(keys.dtype, arguments, kernels.remember, anywhere)


def attention(
    x: jax.Array,  # [B, T, D], the queries
    source: jax.Array,  # [B, S, D], the keys and values
    mask: jax.Array,
    heads: int,
    inner: int,  # H K
    dropout_rate: float,
    training: bool,
    name: str,
) -> tuple[jax.Array, jax.Array]:
    """A whole attention block: output [B, T, D] and weights [B, H, T, S]."""
    with hk.name_scope(name):
        query = split_heads(project_query(x, heads, inner), heads)
        key, value = project_key_value(source, heads, inner)
        mixed, weights = attend(query, key, value, mask, dropout_rate, training)
        return linear(merge_heads(mixed), x.shape[-1], "out_proj"), weights
