"""Multi-head attention. Shapes: see the glossary in `bart_hk.model.layers`.

Our own rather than Haiku's, which has no attention dropout, no cache and no weights out. Heads are
an outer axis, [B, H, T, K]: as [B, T, H, K] the same products took eight times as long on a CPU.
Masks are boolean, True = attend.
"""

import haiku as hk
import jax
import jax.numpy as jnp

from bart_hk.model.layers import dropout, linear


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """[B, T, D] -> [B, H, T, K]."""
    batch, length, width = x.shape
    return x.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def merge_heads(x: jax.Array) -> jax.Array:
    """[B, H, T, K] -> [B, T, D]."""
    batch, heads, length, width = x.shape
    return x.swapaxes(1, 2).reshape(batch, length, heads * width)


def project_query(x: jax.Array, heads: int) -> jax.Array:
    """[B, T, D] -> scaled queries [B, H, T, K]; the scale comes after the bias, as in fairseq."""
    width = x.shape[-1]
    return split_heads(linear(x, width, "q_proj") * (width // heads) ** -0.5, heads)


def project_key_value(x: jax.Array, heads: int) -> tuple[jax.Array, jax.Array]:
    """[B, S, D] -> keys and values, each [B, H, S, K]."""
    width = x.shape[-1]
    key = split_heads(linear(x, width, "k_proj"), heads)
    value = split_heads(linear(x, width, "v_proj"), heads)
    return key, value


def attend(
    query: jax.Array,  # [B, H, T, K], scaled
    key: jax.Array,  # [B, H, S, K]
    value: jax.Array,  # [B, H, S, K]
    mask: jax.Array,  # bool, broadcastable to [B, H, T, S]
    dropout_rate: float = 0.0,
    training: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention in float32: the mixed values [B, H, T, K] and the weights [B, H, T, S].

    A query that may attend nowhere (a fully padded row) gets uniform weights, never NaN.
    """
    scores = jnp.einsum("bhtk,bhsk->bhts", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1)
    dropped = dropout(weights, dropout_rate, training).astype(value.dtype)
    return jnp.einsum("bhts,bhsk->bhtk", dropped, value), weights


def merge_and_project(mixed: jax.Array) -> jax.Array:
    """The mixed values [B, H, T, K] through the output projection: [B, T, D]."""
    merged = merge_heads(mixed)
    return linear(merged, merged.shape[-1], "out_proj")


def attention(
    x: jax.Array,  # [B, T, D], the queries
    source: jax.Array,  # [B, S, D], the keys and values
    mask: jax.Array,
    heads: int,
    dropout_rate: float,
    training: bool,
    name: str,
) -> tuple[jax.Array, jax.Array]:
    """A whole attention block: output [B, T, D] and weights [B, H, T, S]."""
    with hk.name_scope(name):
        query = project_query(x, heads)
        key, value = project_key_value(source, heads)
        mixed, weights = attend(query, key, value, mask, dropout_rate, training)
        return merge_and_project(mixed), weights
