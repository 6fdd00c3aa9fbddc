"""Functions of our own for token-by-token decoding on a CPU (`decoding.cc`).

Features come first, as in `bart_hk.model`: [D, B, W]. Each function computes in float32 whatever
dtype its weights have, and is for a program that runs on a CPU where `available()`; elsewhere, and
where a gradient is wanted, use XLA's operations. Shapes: see the glossary in
`bart_hk.model.layers`.

Why they are here: searches take 0.77 to 0.89 of the time that they take on XLA's operations in
float32, and 0.49 to 0.62 in bfloat16, which without them is no faster than float32 with them: to
write a step into a bfloat16 cache, XLA's CPU compiler turns all of it to float32 and back. They
also spare the transposed copy of the decoder's weights that it needs. (bart.base's shapes, 8 rows
greedy and with 4 beams and 1 row with 4 beams, two cores: `tools/benchmark.py greedy beam
beam_of_one --rounds 3 --only bart_hk,bart_hk-xla,bart_hk-bfloat16,bart_hk-bfloat16-xla`.)
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from bart_hk.kernels.compiler import available

__all__ = ["add_norm", "attend", "available", "choose", "linear", "remember", "serve"]

T = TypeVar("T")


def serve(dtype: Any) -> bool:
    """Are the functions there for weights and caches of this dtype?"""
    return dtype in (jnp.float32, jnp.bfloat16) and available()


def choose(
    dtype: Any,
    arguments: tuple[jax.Array, ...],
    on_a_cpu: Callable[..., T],
    anywhere: Callable[..., T],
) -> T:
    """`on_a_cpu(*arguments)` where the functions serve and the program is for a CPU, or else
    `anywhere(*arguments)`."""
    if not serve(dtype):
        return anywhere(*arguments)
    if jax.extend.backend.backends().keys() == {"cpu"}:  # so the other need not be traced
        return on_a_cpu(*arguments)
    return jax.lax.platform_dependent(*arguments, cpu=on_a_cpu, default=anywhere)


def _call(
    name: str,
    results: Any,
    *arguments: jax.Array,
    in_place: dict[int, int] | None = None,
    **attributes: Any,
) -> Any:
    call = jax.ffi.ffi_call(
        f"bart_hk_{name}",
        results,
        vmap_method="sequential",
        input_output_aliases=in_place,  # argument -> result
    )
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
    with_weights: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Softmax attention: the mixed values float32 [D, B, W]; and the weights float32
    [B, H, W, S], or an array of no elements."""
    batch, heads, _, slots = key.shape
    shape = (batch, heads, query.shape[2], slots) if with_weights else (0,)
    results = (
        jax.ShapeDtypeStruct(query.shape, jnp.float32),
        jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    query = query.astype(jnp.float32)
    mixed, weights = _call("attend", results, query, key, value, mask)
    return mixed, weights


def remember(
    query: jax.Array,  # float [D, B, W], scaled
    key: jax.Array,  # float [D, B, W], this step's
    value: jax.Array,  # float [D, B, W]
    keys: jax.Array,  # float32 or bfloat16 [B, H, K, T W]
    values: jax.Array,  # as the keys, [B, H, T W, K]
    mask: jax.Array,  # bool [B, W, T W]
    step: jax.Array,  # int32, below T
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Writes a step's keys and values to their slots of a cache, and attends to those up to them:
    the mixed values float32 [D, B, W], and the cache, in place where nothing else needs it.

    XLA's CPU compiler would turn the whole of a bfloat16 cache into float32 and back to write to
    it.
    """
    results = [jax.ShapeDtypeStruct(query.shape, jnp.float32)]
    results += [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (keys, values)]
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    arguments = (query, key, value, keys, values, mask, jnp.int32(step))
    mixed, keys, values = _call("remember", results, *arguments, in_place={3: 1, 4: 2})
    return mixed, keys, values


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
