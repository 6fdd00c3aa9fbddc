"""What compiled programs take beside parameters, caches and results; nothing is run but for ids."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import BARTConfig
from bart_hk.generation import generator as generator_module
from bart_hk.generation.generator import Generator, rows_at_once
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.request import Request
from bart_hk.model import BART
from tests.parameters import random_params

ROWS, SOURCE, BEAM, ROOM = 8, 256, 4, 64
CONFIG = BARTConfig(
    vocab_size=60,
    encoder_embed_dim=64,
    encoder_ffn_embed_dim=128,
    encoder_layers=1,
    encoder_attention_heads=4,
    decoder_ffn_embed_dim=128,
    decoder_layers=6,
    decoder_attention_heads=4,
    max_source_positions=SOURCE,
    max_target_positions=ROOM,
)
KEYS = 4 * ROWS * SOURCE * CONFIG.encoder_embed_dim  # bytes of a layer's cross keys


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator(BART(CONFIG))


@pytest.fixture(scope="module")
def shapes():
    """Of parameters and ids; and a request for such ids."""
    params = {
        path: {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}
        for path, leaves in parameter_shapes(CONFIG).items()
    }
    rows = [np.full(SOURCE, 5)] * ROWS
    options = GenerationOptions(beam=BEAM, max_len_b=ROOM - 1)
    request = Request.make(CONFIG, rows, options, is_ensemble=False)
    return params, jax.ShapeDtypeStruct((ROWS, SOURCE), jnp.int32), request


def begin(generator, params, ids, request):
    encoded = jax.eval_shape(generator.bart.source, params, ids)
    lowered = generator._begin.lower(
        params,
        encoded,
        np.ones(ROWS, bool),
        None,
        is_restricted=False,
        rules=request.rules.at_the_beginning,
        length=ROOM,
    )
    return lowered.out_info, lowered.compile().memory_analysis()


def test_caches_of_long_batches_are_made_in_groups(generator, shapes, monkeypatch):
    _, whole = begin(generator, *shapes)
    monkeypatch.setattr(generator_module, "START_BYTES", 12 * KEYS // ROWS)
    _, parts = begin(Generator(generator.bart), *shapes)
    assert parts.output_size_in_bytes == whole.output_size_in_bytes > 12 * KEYS
    assert whole.temp_size_in_bytes > 3 * KEYS
    assert parts.temp_size_in_bytes < 0.5 * whole.temp_size_in_bytes


def test_a_search_takes_no_second_cache(generator, shapes):
    params, _, request = shapes
    state, _ = begin(generator, *shapes)
    limits = request.limits(np.arange(ROWS), ROWS, CONFIG.vocab_size)
    steps = jax.eval_shape(generator.bart.for_steps, params)
    memory = generator._search.lower(steps, state, limits, rules=request.rules)
    memory = memory.compile().memory_analysis()
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert memory.alias_size_in_bytes >= 0.99 * size  # it is written in place
    assert memory.temp_size_in_bytes < KEYS


def test_long_batches_are_encoded_in_groups(generator, shapes, monkeypatch):
    params, ids, _ = shapes
    scores = 4 * SOURCE * SOURCE * CONFIG.encoder_attention_heads  # of a row
    sizes = []
    for limit in (1 << 29, 4 * scores):
        monkeypatch.setattr(generator_module, "ENCODER_BYTES", limit)
        encode = Generator(generator.bart)._encode
        sizes.append(encode.lower(params, ids).compile().memory_analysis().temp_size_in_bytes)
    assert sizes[0] > ROWS * scores
    assert sizes[1] < 0.4 * sizes[0]


def test_groups_find_what_the_whole_finds(monkeypatch):
    params = random_params(CONFIG, 0.3)
    rng = np.random.default_rng(0)
    rows = [np.append(rng.integers(4, 60, n), 2) for n in (23, 9, 20, 21, 12, 16)]
    options = GenerationOptions(beam=2, max_len_b=12)
    whole = Generator(BART(CONFIG)).generate(params, rows, options, attention=False)
    assert len({h["tokens"].tobytes() for (h, _) in whole}) > 3
    monkeypatch.setattr(generator_module, "ENCODER_BYTES", 1 << 17)
    monkeypatch.setattr(generator_module, "START_BYTES", 1 << 17)
    mapped = []
    real = jax.lax.map
    monkeypatch.setattr(jax.lax, "map", lambda f, xs: mapped.append(xs) or real(f, xs))
    parts = Generator(BART(CONFIG)).generate(params, rows, options, attention=False)
    assert len(mapped) == 2  # both are computed in groups
    for one, other in zip(parts, whole, strict=True):
        for a, b in zip(one, other, strict=True):
            assert a["tokens"].tolist() == b["tokens"].tolist()
            scores = (h["positional_scores"] for h in (a, b))
            np.testing.assert_allclose(*scores, rtol=1e-5, atol=1e-5)


def test_a_group_divides_the_rows():
    assert [rows_at_once(8, 10, limit) for limit in (5, 10, 39, 40, 79, 80, 1000)] == [
        *(1, 1, 2, 4, 4, 8, 8)
    ]
    assert rows_at_once(21, 10, 100) == 7
    assert rows_at_once(7, 10, 60) == 1
