"""The small parts: activations, linear maps, layer norm, embeddings, dropout.

Glossary of shapes, for every docstring of this package: `B` batch, `S` source length, `T` target
length, `D` model width, `H` heads, `K` head width, `F` feed-forward width, `V` vocabulary, `L`
layers, `W` beam width.

The functions run inside Haiku modules. A parameter's path is the enclosing modules' names and
`hk.name_scope`s, then the `name` given here: no path depends on the order of construction.

Where a function takes `axis`, it is the one that features are on: -1, as in [B, T, D], or 0. Steps
of a search have few rows, and use [D, B, W]: `w.T @ x` over contiguous columns took two thirds of
the time of `x @ w` on a CPU (32 rows; with 8 rows half), and `bart_hk.kernels` two thirds of that.
What they compute is float32, whatever the dtype of the weights.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from bart_hk import kernels
from bart_hk.config import ACTIVATION_PARAMETERS, Activation

_EXACT_GELU = ("gelu", "gelu_python")
_TANH_GELU = ("gelu_fast", "gelu_accurate", "gelu_new", "gelu_pytorch_tanh", "gelu_python_tanh")
LAYER_NORM_EPS = 1e-5  # torch's default, which fairseq and Hugging Face use


def _gelu(x: jax.Array) -> jax.Array:
    # Through erf as torch computes it; jax.nn.gelu goes through erfc, four times slower on a CPU.
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def _laplace(x: jax.Array, mu: float = 0.707107, sigma: float = 0.282095) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf((x - mu) / (sigma * math.sqrt(2.0))))


def _xielu(x: jax.Array, alpha_p: jax.Array, alpha_n: jax.Array) -> jax.Array:
    # Huang and Schlag 2024. transformers has these numbers in bfloat16, whatever the model is in.
    def short(number: Any) -> jax.Array:
        return jnp.asarray(number).astype(jnp.bfloat16).astype(jnp.float32)

    alpha_p, alpha_n = (short(jax.nn.softplus(short(a))) for a in (alpha_p, alpha_n))
    negative = (jnp.expm1(jnp.minimum(x, short(-1e-6))) - x) * short(0.5 + alpha_n)
    return jnp.where(x > 0, alpha_p * x * x, negative) + 0.5 * x


_ACTIVATIONS: dict[str, Callable[..., jax.Array]] = {
    "relu": jax.nn.relu,
    **dict.fromkeys(_EXACT_GELU, _gelu),
    "gelu_10": lambda x: jnp.clip(_gelu(x), -10.0, 10.0),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "laplace": _laplace,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.01),
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "linear": lambda x: x,
    "prelu": lambda x, weight: jnp.where(x < 0, weight * x, x),
    "xielu": _xielu,
    **{name: lambda x: jax.nn.gelu(x, approximate=True) for name in _TANH_GELU},
}


def activate(x: jax.Array, name: Activation) -> jax.Array:
    """`x` through the named activation, in float32 and back (as fairseq's gelu does for fp16).

    One that has parameters has them at `activation_fn`, [1] each.
    """
    own = {}
    if name in ACTIVATION_PARAMETERS:
        with hk.name_scope("activation_fn"):
            for parameter, first in ACTIVATION_PARAMETERS[name].items():
                constant = hk.initializers.Constant(first)
                own[parameter] = hk.get_parameter(parameter, (1,), jnp.float32, constant)
    return _ACTIVATIONS[name](x.astype(jnp.float32), **own).astype(x.dtype)


def compute_in(dtype: jnp.dtype) -> AbstractContextManager[None]:
    """Casts weights, biases and embeddings to `dtype` where they are used.

    Layer norms keep their float32 parameters: they compute in float32 whatever `dtype` is.
    """

    def cast(next_getter, value, context):
        value = jnp.asarray(next_getter(value))  # parameters may be NumPy's
        return value if context.name in ("scale", "offset") else value.astype(dtype)

    return hk.custom_getter(cast)


_normal = hk.initializers.RandomNormal(0.02)


def product(
    x: jax.Array, w: jax.Array, b: jax.Array, *, output_first: bool = False, gelu: bool = False
) -> jax.Array:
    """`w.T x + b` over the first axis of few columns, summed in float32: float32 [O, ...].

    Args:
        x: float [I, ...].
        w: [I, O]; or [O, I] with `output_first`, which knows no GELU. The product is computed in
            its dtype, or more exactly.
        b: [O].
        gelu: let the exact GELU follow.
    """

    def on_a_cpu(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        return kernels.linear(x, w, b, output_first=output_first, gelu=gelu)

    def anywhere(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        axes = ((1,) if output_first else (0,), (0,))
        out = jnp.tensordot(w, x.astype(w.dtype), axes, preferred_element_type=jnp.float32)
        out = out + b.astype(jnp.float32).reshape(-1, *(1,) * (x.ndim - 1))
        return _gelu(out) if gelu else out

    return kernels.choose(w.dtype, (x, w, b), on_a_cpu, anywhere)


class _FirstAxisLinear(hk.Module):
    """`hk.Linear` over the first axis, and perhaps the exact GELU after it."""

    def __init__(self, size: int, name: str, gelu: bool = False) -> None:
        super().__init__(name=name)
        self._size, self._gelu = size, gelu

    def __call__(self, x: jax.Array) -> jax.Array:
        w = hk.get_parameter("w", (x.shape[0], self._size), x.dtype, _normal)
        b = hk.get_parameter("b", (self._size,), x.dtype, jnp.zeros)
        return product(x, w, b, gelu=self._gelu)


def times(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x w` over the last axis of [..., I] and [I, O], summed in float32.

    In float32 it has a gradient of its own, and so no forward-mode derivative: an update of
    bart.mini takes six sevenths of the time (`tools/benchmark_train.py`, two cores).
    """
    if not x.dtype == w.dtype == jnp.float32:
        return jnp.matmul(x, w, preferred_element_type=jnp.float32)
    rows = _rows_times(x.reshape(-1, x.shape[-1]), w)
    return rows.reshape(*x.shape[:-1], w.shape[1])


@jax.custom_vjp
def _rows_times(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def _rows_times_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return x @ w, (x, w)


def _rows_times_backward(
    stored: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # jax derives (gradient.T x).T for the weights, which is the slower order.
    x, w = stored
    return gradient @ w.T, x.T @ gradient


_rows_times.defvjp(_rows_times_forward, _rows_times_backward)


class _Linear(hk.Module):
    """`hk.Linear`, with `times`."""

    def __init__(self, size: int, name: str) -> None:
        super().__init__(name=name)
        self._size = size

    def __call__(self, x: jax.Array) -> jax.Array:
        w = hk.get_parameter("w", (x.shape[-1], self._size), x.dtype, _normal)
        b = hk.get_parameter("b", (self._size,), x.dtype, jnp.zeros)
        return times(x, w).astype(x.dtype) + b


def linear(x: jax.Array, size: int, name: str, axis: int = -1) -> jax.Array:
    """`x w + b` over `axis`; w [in, size] ~ N(0, 0.02), b = 0 (fairseq init_bert_params).

    The result has the dtype of `x`; over the first axis it is float32.
    """
    if axis == 0:
        return _FirstAxisLinear(size, name)(x)
    return _Linear(size, name)(x)


def linear_and_activate(
    x: jax.Array, size: int, name: str, activation: Activation, axis: int = -1
) -> jax.Array:
    """`linear`, and then `activate`."""
    if axis == 0 and activation in _EXACT_GELU:
        return _FirstAxisLinear(size, name, gelu=True)(x)
    return activate(linear(x, size, name, axis), activation)


class _LayerNorm(hk.Module):
    """`hk.LayerNorm` over the last axis or the first, with as many parameters as the axis is long.

    Haiku's has parameters of another shape over the first, and copies `scale` for every row: a
    norm, a product of 256 x 256 and their gradients took a sixth longer (32 x 24 rows, a CPU).
    """

    def __call__(self, x: jax.Array, y: jax.Array | None, axis: int) -> jax.Array:
        size = x.shape[axis]
        scale = hk.get_parameter("scale", (size,), jnp.float32, jnp.ones)
        offset = hk.get_parameter("offset", (size,), jnp.float32, jnp.zeros)
        shape = (size, *(1,) * (x.ndim - 1)) if axis == 0 else (size,)

        def on_a_cpu(x: jax.Array, *y: jax.Array) -> jax.Array:
            return kernels.add_norm(x, *y, scale=scale, offset=offset, epsilon=LAYER_NORM_EPS)

        def anywhere(x: jax.Array, *y: jax.Array) -> jax.Array:
            both = sum(y, start=x)
            centred = both - jnp.mean(both, axis, keepdims=True)
            variance = jnp.mean(jnp.square(centred), axis, keepdims=True)
            normal = centred * jax.lax.rsqrt(variance + LAYER_NORM_EPS)
            return normal * scale.reshape(shape) + offset.reshape(shape)

        arguments = (x,) if y is None else (x, y.astype(x.dtype))
        if axis == 0:
            return kernels.choose(x.dtype, arguments, on_a_cpu, anywhere)
        return anywhere(*arguments)


def layer_norm(x: jax.Array, name: str, axis: int = -1, plus: jax.Array | None = None) -> jax.Array:
    """Layer norm over `axis` of `x`, or of `x + plus`, in float32; returns the dtype of `x`."""
    if axis != 0 and plus is not None:
        x, plus = x + plus, None  # rounded to their dtype, as torch's sum is
    return _LayerNorm(name=name)(x.astype(jnp.float32), plus, axis).astype(x.dtype)


class Parameter(hk.Module):
    """One parameter under a module path of its own: `name/parameter`, ~ N(0, 0.02) by default."""

    def __init__(
        self,
        name: str,
        parameter: str,
        shape: tuple[int, ...],
        init: hk.initializers.Initializer | None = None,
    ) -> None:
        super().__init__(name=name)
        self._arguments = (parameter, shape, jnp.float32)
        self._init = init or hk.initializers.RandomNormal(0.02)

    def __call__(self) -> jax.Array:
        return hk.get_parameter(*self._arguments, self._init)


def embedding(name: str, rows: int, width: int, zero_row: int | None = None) -> Parameter:
    """The table `name/embeddings` [rows, width] ~ N(0, 0.02), `zero_row` zero at initialisation."""

    def init(shape, dtype):
        table = hk.initializers.RandomNormal(0.02)(shape, dtype)
        return table if zero_row is None else table.at[zero_row].set(0.0)

    return Parameter(name, "embeddings", (rows, width), init)


def sinusoidal(rows: jax.Array, width: int) -> jax.Array:
    """What stands for positions in place of a table: float32 [..., D] of int [...] row numbers.

    Sines of the row times D / 2 frequencies, falling geometrically from 1 to 1 / 10000, then their
    cosines (fairseq `sinusoidal_positional_embedding.py`; Vaswani et al. take turns instead). The
    last of an odd number of columns is zero.
    """
    half = width // 2
    step = np.float32(math.log(10000) / (half - 1))
    angles = rows[..., None].astype(jnp.float32) * np.exp(-step * np.arange(half, dtype=np.float32))
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate([*parts, jnp.zeros((*rows.shape, width % 2))], axis=-1)


def look_up(table: jax.Array, ids: jax.Array) -> jax.Array:
    """`table[ids]`: rows [..., D] of [rows, D].

    XLA's CPU compiler turns the whole of a bfloat16 table into float32 before it looks anything up,
    so there the rows are taken as bits.
    """
    return _rows_of_bits(table, ids) if table.dtype == jnp.bfloat16 else table[ids]


@jax.custom_jvp
def _rows_of_bits(table: jax.Array, ids: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(table, jnp.uint16)
    return jax.lax.bitcast_convert_type(bits[ids], table.dtype)


@_rows_of_bits.defjvp
def _rows_of_bits_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (table, ids), (change, _) = primals, tangents
    return _rows_of_bits(table, ids), change[ids]


def dropout(x: jax.Array, rate: float, training: bool) -> jax.Array:
    """Zeroes each element with probability `rate` and rescales, in training only.

    The probability is rounded to a multiple of 2^-16: an element takes 16 random bits.
    """
    if not training or rate == 0.0:
        return x
    dropped = min(max(round(rate * 2**16), 1), 2**16 - 1)
    return jnp.where(_random_bits(x.shape) >= dropped, x / (1 - rate), 0)


def _random_bits(shape: tuple[int, ...]) -> jax.Array:
    """Uint16 of a shape, four of each block of threefry's 64 bits.

    jax's own order, which several devices can divide, takes a block for each number, whatever its
    size: dropout of 32 x 32 x 256 took three times as long on a CPU.
    """
    size = math.prod(shape)
    with jax.threefry_partitionable(False):
        words = jax.random.bits(hk.next_rng_key(), (-(-size // 2),), jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size].reshape(shape)


def layer_drop(new: jax.Array, old: jax.Array, rate: float, training: bool) -> jax.Array:
    """A layer's output `new`, or with probability `rate` its input `old`, in training only."""
    if not training or rate == 0.0:
        return new
    return jnp.where(jax.random.uniform(hk.next_rng_key()) > rate, new, old)
