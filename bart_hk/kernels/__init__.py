"""Functions of our own for token-by-token decoding on a CPU (`decoding.cc`).

Features come first, as in `bart_hk.model`: [D, B, W]. Each function computes in float32 whatever
dtype its weights have, and is for a program that runs on a CPU where `available()`; elsewhere, and
where a gradient is wanted, use XLA's operations. Shapes: see the glossary in
`bart_hk.model.layers`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.kernels.compiler import available

__all__ = ["add_norm", "attend", "available", "linear", "serve"]


def serve(dtype: Any) -> bool:
    """Are the functions there for weights and caches of this dtype?"""
    return dtype in (jnp.float32, jnp.bfloat16) and available()


def _call(name: str, results: Any, *arguments: jax.Array, **attributes: Any) -> Any:
    call = jax.ffi.ffi_call(f"bart_hk_{name}", results, vmap_method="sequential")
    return call(*arguments, **attributes)


def linear(
    x: jax.Array, w: jax.Array, b: jax.Array, *, output_first: bool = False, gelu: bool = False
) -> jax.Array:
    """`w.T x + b` over the first axis, through the exact GELU where asked: float32 [O, ...].

    Args:
        x: float [I, ...].
        w: float32 or bfloat16 [I, O]; or [O, I] with `output_first`, which knows no GELU.
        b: float32 or bfloat16 [O].
    """
    outputs = w.shape[0] if output_first else w.shape[1]
    result = jax.ShapeDtypeStruct((outputs, *x.shape[1:]), jnp.float32)
    x = x.astype(jnp.float32)
    return _call("linear", result, x, w, b, output_first=output_first, gelu=gelu)


def attend(
    query: jax.Array,  # float [D, B, W], scaled
    key: jax.Array,  # float32 or bfloat16 [B, H, K, S]
    value: jax.Array,  # as the key, [B, H, S, K]
    mask: jax.Array,  # bool [B, W, S] or [B, 1, S]
    used: jax.Array | int,  # slots; those beyond are neither read nor attended
    with_weights: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention over a cache: the mixed values float32 [D, B, W]; and the weights float32
    [B, H, W, S], or an array of no elements."""
    batch, heads, _, slots = key.shape
    shape = (batch, heads, query.shape[2], slots) if with_weights else (0,)
    results = (
        jax.ShapeDtypeStruct(query.shape, jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    query = query.astype(jnp.float32)
    mixed, weights = _call("attend", results, query, key, value, mask, jnp.int32(used))
    return mixed, weights


def add_norm(
    x: jax.Array,
    y: jax.Array | None = None,
    *,
    scale: jax.Array,
    offset: jax.Array,
    epsilon: float,
) -> jax.Array:
    """Layer norm of `x`, or of `x + y`, over the first axis: float32 [D, ...] like both.

    scale, offset: float [D].
    """
    result = jax.ShapeDtypeStruct(x.shape, jnp.float32)
    x = x.astype(jnp.float32)
    y = jnp.zeros(0, jnp.float32) if y is None else y.astype(jnp.float32)
    scale, offset = scale.astype(jnp.float32), offset.astype(jnp.float32)
    return _call("add_norm", result, x, y, scale, offset, epsilon=np.float32(epsilon))
