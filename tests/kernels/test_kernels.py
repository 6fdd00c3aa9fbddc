"""The compiled functions against NumPy in float64, over shapes that leave remainders."""

import subprocess
import sys

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from bart_hk import kernels


@pytest.fixture(autouse=True, scope="module")
def compiled():
    assert kernels.available(), "these tests need a C++ compiler, such as g++"


COLUMNS = [
    (1,),
    (2,),
    (3,),
    (2, 2),
    (7,),
    (2, 4),
    (3, 3),
    (16,),
    (5, 4),
    (8, 4),
    (3, 11),
    (48,),
    (70,),
]


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(5, 3), (48, 64), (70, 33), (130, 200), (256, 1024)]
)
@pytest.mark.parametrize("columns", COLUMNS, ids=str)
def test_linear_equals_a_matrix_product(columns, inputs, outputs, dtype):
    rng = np.random.default_rng(0)
    x, b = draw(rng, inputs, *columns), draw(rng, outputs)
    for output_first in (False, True):
        shape = (outputs, inputs) if output_first else (inputs, outputs)
        w = jnp.asarray(draw(rng, *shape) / inputs**0.5, dtype)
        found = kernels.linear(jnp.asarray(x), w, jnp.asarray(b), output_first=output_first)
        assert found.dtype == jnp.float32
        expected = exact(w if output_first else w.T, x, b, found)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    gelu = kernels.linear(jnp.asarray(x), w.T, jnp.asarray(b), gelu=True)
    expected = 0.5 * expected * (1 + erf(expected / 2**0.5))
    np.testing.assert_allclose(gelu, expected, rtol=1e-5, atol=1e-5)


def exact(w: jnp.ndarray, x: np.ndarray, b: np.ndarray, found: jnp.ndarray) -> np.ndarray:
    """`w x + b` in float64. Processors that multiply bfloat16 round x to it, others do not: of the
    two results the one that `found` is closer to."""
    results = []
    for factor in (x, jnp.asarray(x, w.dtype)):
        product = np.tensordot(np.asarray(w, np.float64), np.asarray(factor, np.float64), 1)
        results.append(product + b.reshape(-1, *(1,) * (x.ndim - 1)))
    return min(results, key=lambda result: np.abs(result - np.asarray(found)).max())


def test_the_gelu_is_exact_where_it_bends_and_where_it_is_flat():
    x = np.concatenate([np.linspace(-15, 15, 3001), [-1e30, -0.0, 0.0, 1e30]]).astype(np.float32)
    one, zero = jnp.ones((1, 1)), jnp.zeros(1)
    found = kernels.linear(jnp.asarray(x)[None], one, zero, gelu=True)[0]
    exact = 0.5 * x.astype(np.float64) * (1 + erf(x.astype(np.float64) / 2**0.5))
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=5e-7)


def attended(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mixed values [D, B, W] and weights [B, H, W, S], in float64; see `kernels.attend`."""
    heads, width = key.shape[1:3]
    queries = query.astype(np.float64).reshape(heads, width, *query.shape[1:])
    scores = np.einsum("hkbw,bhks->bhws", queries, key)
    mask = np.broadcast_to(mask, (key.shape[0], query.shape[2], key.shape[3]))
    scores = np.where(mask[:, None], scores, np.finfo(np.float32).min)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhws,bhsk->hkbw", weights, value).reshape(query.shape), weights


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("beams", [1, 3, 4, 9])
@pytest.mark.parametrize("slots", [1, 8, 36, 100, 128])
def test_attention_attends_where_it_may(slots, beams, dtype):
    rng = np.random.default_rng(slots)
    batch, heads, width = 2, 3, 20
    query = draw(rng, heads * width, batch, beams)
    key, value = (
        jnp.asarray(draw(rng, *shape), dtype)
        for shape in ((batch, heads, width, slots), (batch, heads, slots, width))
    )
    for rows in (1, beams):
        mask = rng.random((batch, rows, slots)) < 0.7
        mask[:, :, 0] = True
        mask[0, 0] = False  # who may attend nowhere attends everywhere
        exact_ones = (np.asarray(x, np.float64) for x in (key, value))
        mixed, weights = attended(query, *exact_ones, mask)
        arguments = (jnp.asarray(query), key, value, jnp.asarray(mask))
        found, shares = kernels.attend(*arguments, with_weights=True)
        np.testing.assert_allclose(found, mixed, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(shares, weights, rtol=1e-5, atol=1e-6)
        assert not np.asarray(shares)[weights == 0].any()
        again, nothing = kernels.attend(*arguments)
        np.testing.assert_array_equal(again, found)
        assert nothing.size == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("beams", [1, 3, 4, 9])
@pytest.mark.parametrize(("room", "step"), [(1, 0), (8, 0), (8, 4), (8, 7), (25, 13)])
def test_a_step_is_remembered_and_what_is_beyond_it_is_not_read(room, step, beams, dtype):
    rng = np.random.default_rng(room)
    batch, heads, width = 2, 3, 20
    slots, before, used = room * beams, step * beams, (step + 1) * beams
    query, key, value = (draw(rng, heads * width, batch, beams) for _ in range(3))
    keys, values = (
        jnp.asarray(draw(rng, *shape), dtype)
        for shape in ((batch, heads, width, slots), (batch, heads, slots, width))
    )
    keys, values = keys.at[..., before:].set(jnp.nan), values.at[:, :, before:].set(jnp.nan)
    new_key = jnp.asarray(key.reshape(heads, width, batch, beams).transpose(2, 0, 1, 3), dtype)
    new_value = jnp.asarray(value.reshape(heads, width, batch, beams).transpose(2, 0, 3, 1), dtype)
    full_keys = np.asarray(keys.at[..., before:used].set(new_key), np.float64)
    full_values = np.asarray(values.at[:, :, before:used].set(new_value), np.float64)
    mask = rng.random((batch, beams, slots)) < 0.7
    mask[0, 0] = False
    held = (full_keys[..., :used], full_values[:, :, :used])
    expected, _ = attended(query, *held, mask[..., :used])
    arguments = (*map(jnp.asarray, (query, key, value)), keys, values, jnp.asarray(mask))
    mixed, after_keys, after_values = kernels.remember(*arguments, step)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(after_keys, np.float64), full_keys)
    np.testing.assert_array_equal(np.asarray(after_values, np.float64), full_values)
    assert np.isnan(keys[..., before:]).all()  # what the caller still holds is not written to


@pytest.mark.parametrize("platforms", [("cpu",), ("cpu", "cuda")])
def test_a_program_for_a_cpu_takes_the_functions(platforms, monkeypatch):
    monkeypatch.setattr(jax.extend.backend, "backends", lambda: dict.fromkeys(platforms))

    def chosen(dtype):
        arguments = (jnp.float32(1),)
        return kernels.choose(dtype, arguments, lambda x: x + 1, lambda x: x - 1)

    assert jax.jit(lambda: chosen(jnp.float32))() == 2
    assert jax.jit(lambda: chosen(jnp.float16))() == 0


@pytest.mark.parametrize("columns", COLUMNS, ids=str)
def test_add_norm_equals_layer_norm(columns):
    rng = np.random.default_rng(1)
    x, y, scale, offset = (
        draw(rng, 33, *columns),
        draw(rng, 33, *columns),
        draw(rng, 33),
        draw(rng, 33),
    )
    for other in (None, y):
        total = x.astype(np.float64) + (0 if other is None else other)
        normal = (total - total.mean(0)) / np.sqrt(total.var(0) + 1e-5)
        along = (-1, *(1,) * len(columns))
        found = kernels.add_norm(x, other, scale=scale, offset=offset, epsilon=1e-5)
        expected = normal * scale.reshape(along) + offset.reshape(along)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def run(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


ASK = """
import logging, sys
logging.basicConfig(level="INFO", format="%(message)s", stream=sys.stdout)
from bart_hk import kernels
print(kernels.available())
"""


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"BART_HK_KERNELS": "0"}, "False"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler is there (no-such-compiler)\nFalse"),
        ({"CXX": "false"}, "ended with 1: no message\nFalse"),
    ],
    ids=["not wanted", "no compiler", "a compiler that fails"],
)
def test_without_them_decoding_goes_on(environment, said, tmp_path):
    assert run(ASK, XDG_CACHE_HOME=str(tmp_path), **environment).endswith(said)


def test_a_library_is_compiled_once_and_a_damaged_one_again(tmp_path):
    code = (
        "from bart_hk.kernels import compiler as c;"
        # A tenth of the time, and another library than the other tests'.
        "c._FLAGS = tuple('-O0' if flag == '-O3' else flag for flag in c._FLAGS);"
        "print(c.available(), c._library())"
    )
    first = run(code, XDG_CACHE_HOME=str(tmp_path))
    assert first.startswith("True ")
    (library,) = (tmp_path / "bart_hk" / "kernels").glob("*.so")
    written = library.stat().st_mtime_ns
    assert run(code, XDG_CACHE_HOME=str(tmp_path)) == first
    assert library.stat().st_mtime_ns == written
    library.write_bytes(library.read_bytes()[:1000])
    assert run(code, XDG_CACHE_HOME=str(tmp_path)) == first
