"""The greatest entries along the vocabulary's axis, found without sorting it.

Shapes: B batch, W beam width, V vocabulary.
"""

import jax
import jax.numpy as jnp

_BLOCK = 128  # tokens whose greatest logit is found first


def best_of_first_axis(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` greatest of [V, B, W] over V, with their indices: two arrays [B, W, count].

    As `jax.lax.top_k` of the transposed array, ties included: the lower index first. It reads `x`
    once and transposes only the blocks that can hold a result, those with the greatest maxima.
    """
    rows, *shape = x.shape
    x = x.reshape(rows, -1)  # [V, B W]
    blocks = -(-rows // _BLOCK)
    if blocks > count:
        padded = jnp.pad(x, ((0, blocks * _BLOCK - rows), (0, 0)), constant_values=-jnp.inf)
        maxima = jnp.max(padded.reshape(blocks, _BLOCK, -1), axis=1)
        _, chosen = _top_k(maxima.T, count)
        within = jnp.sort(chosen, axis=1)[..., None] * _BLOCK + jnp.arange(_BLOCK)
        indices = within.reshape(x.shape[1], -1)  # [B W, count _BLOCK]
        columns = jnp.arange(x.shape[1])[:, None]
        values = x.at[indices, columns].get(mode="fill", fill_value=-jnp.inf)
        best, place = _top_k(values, count)
        indices = jnp.take_along_axis(indices, place, 1)
    else:
        best, indices = _top_k(x.T, count)
    return best.reshape(*shape, count), indices.reshape(*shape, count)


def _top_k(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    # Without the barrier, slices of the result may turn top_k into a sort of the whole axis on a
    # CPU, which takes ten times as long as everything else.
    return jax.lax.optimization_barrier(jax.lax.top_k(x, count))
