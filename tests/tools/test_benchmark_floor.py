"""The benchmark's arithmetic against parameters and caches that are really there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.config import architecture
from bart_hk.model import BART
from tools import benchmark_floor as floor

SMALL = architecture("bart_base").replace(
    vocab_size=101,
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    decoder_ffn_embed_dim=40,
    encoder_layers=1,
    decoder_layers=3,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    max_source_positions=30,
    max_target_positions=30,
)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def network(request):
    bart = BART(SMALL, request.param)
    shapes = jax.eval_shape(bart.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, request.param), shapes)
    return bart, params, np.dtype(bart.dtype).itemsize


def size_of(tree) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_held_is_what_parameters_and_cache_hold(network):
    bart, params, size = network
    source = bart.encode(params, jnp.full((2, 7), 5, jnp.int32))
    cache = bart.start(params, source, 3, 11)
    caches = size_of(cache._replace(src_mask=None))
    assert floor.weight_bytes(SMALL, size) == size_of(params)
    assert floor.held_in_search(SMALL, 2, 3, 7, 11, size) == size_of(params) + caches


def test_read_in_steps_are_the_decoder_the_projection_and_what_is_in_the_cache(network):
    bart, params, size = network
    decoder = {
        path: leaves for path, leaves in params.items() if path.startswith("decoder/layers_")
    }
    once = {p: x for p, x in decoder.items() if "encoder_attn/k_" in p or "encoder_attn/v_" in p}
    assert len(once) == 2 * SMALL.decoder_layers
    weights = size_of(decoder) - size_of(once) + SMALL.vocab_size * 16 * size
    assert floor.read_weights(SMALL, size) == weights
    source = bart.encode(params, jnp.full((2, 7), 5, jnp.int32))
    crossing = size_of((lambda c: (c.cross_keys, c.cross_values))(bart.start(params, source, 3, 1)))
    own = [
        size_of((lambda c: (c.keys, c.values))(bart.start(params, source, 3, t))) for t in (1, 2)
    ]
    read = floor.read_in_search(SMALL, 2, 3, 7, 2, size)
    assert read == 2 * (weights + crossing) + sum(own)


def test_bandwidth_is_a_rate_that_memory_can_have():
    assert 1e8 < floor.bandwidth(threads=2, size=1 << 24, rounds=2) < 1e13
