import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.config import BARTConfig
from bart_hk.model import BART
from bart_hk.training import throughput
from tests.parameters import random_params

CONFIG = BARTConfig(
    vocab_size=500,
    encoder_embed_dim=64,
    encoder_ffn_embed_dim=160,
    encoder_layers=2,
    encoder_attention_heads=4,
    decoder_ffn_embed_dim=96,
    decoder_layers=3,
    decoder_attention_heads=4,
    max_source_positions=80,
    max_target_positions=80,
)


def products(source: int, target: int) -> float:
    """FLOPs of the matrix products of a forward pass, from the traced program."""
    bart, params = BART(CONFIG), random_params(CONFIG)
    ids = [jnp.full((2, n), 7, jnp.int32) for n in (source, target)]

    def forward(params):
        features = bart.decode(params, ids[1], bart.encode(params, ids[0])).features
        return bart.project(params, features)

    total = 0.0
    for equation in jax.make_jaxpr(forward)(params).eqns:
        total += count(equation)
    return total


def count(equation) -> float:
    inner = [v for v in equation.params.values() if hasattr(v, "jaxpr")]
    if inner:
        return sum(count(e) for closed in inner for e in closed.jaxpr.eqns)
    if equation.primitive.name != "dot_general":
        return 0.0
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2.0 * np.prod(equation.outvars[0].aval.shape) * np.prod([left[i] for i in contracted])


@pytest.mark.parametrize(("source", "target"), [(40, 24), (16, 64)])
def test_flops_are_the_products_of_the_network(source, target):
    ours = throughput.training_flops(CONFIG, np.array([source] * 2), np.array([target] * 2))
    masked = 2 * CONFIG.decoder_layers * 4 * 64 * target**2 / 2  # causal pairs that nobody needs
    assert ours == 3 * (products(source, target) - masked)


def test_padding_costs_nothing_and_is_counted():
    pad = CONFIG.pad_token_id
    target = np.full((2, 6), 7)
    full = {"src_tokens": np.full((2, 8), 7), "prev_output_tokens": target, "target": target}
    padded = {
        name: np.pad(ids, ((0, 1), (0, 4)), constant_values=pad) for name, ids in full.items()
    }
    whole = throughput.training_flops(CONFIG, np.array([8, 8]), np.array([6, 6]))
    costs, more = (throughput.batch_costs(CONFIG, [batch]) for batch in (full, padded))
    assert costs["flops"] == more["flops"] == whole
    assert (costs["positions"], costs["padding"]) == (28, 0)
    assert (more["positions"], more["padding"]) == (3 * 12 + 3 * 10, 66 - 28)
    both = throughput.batch_costs(CONFIG, [full, padded])
    assert both == {name: costs[name] + more[name] for name in costs}


def test_a_head_projects_nothing_to_the_vocabulary():
    batch = {name: np.full((2, 8), 7) for name in ("src_tokens", "prev_output_tokens")}
    of_head, of_text = (
        throughput.batch_costs(CONFIG, [found])["flops"]
        for found in (batch, batch | {"target": batch["prev_output_tokens"]})
    )
    assert of_text - of_head == 3 * 2 * CONFIG.encoder_embed_dim * CONFIG.vocab_size * 16


def test_an_encoder_alone_projects_what_it_is_asked_for():
    alone = CONFIG.replace(flavour="encoder_only")
    whole = {name: np.full((2, 8), 7) for name in ("src_tokens", "target")}
    target = np.array([[7, 7, 7], [7, CONFIG.pad_token_id, CONFIG.pad_token_id]])
    asked = whole | {"target": target, "places": np.zeros((2, 3), int)}
    more, less = (throughput.batch_costs(alone, [batch]) for batch in (whole, asked))
    saved = 3 * 2 * CONFIG.encoder_embed_dim * CONFIG.vocab_size * (16 - 4)
    assert more["flops"] - less["flops"] == saved
    assert (less["positions"], less["padding"]) == (16, 0)


def test_the_peak_is_at_least_what_a_slow_machine_does():
    assert 1e8 < throughput.peak_flops(jnp.dtype("float32")) < 1e16
