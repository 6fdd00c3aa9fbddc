"""The expected tree is the network's, and a wrong one is named."""

import jax
import numpy as np
import pytest

from bart_hk.checkpoint.tree import check_parameters, parameter_shapes
from bart_hk.config import ARCHITECTURES, architecture
from bart_hk.model import BART

VARIANTS = [
    {},
    {"encoder_normalize_before": True, "decoder_normalize_before": True},
    {"decoder_normalize_before": True, "layernorm_embedding": False},
    {"share_all_embeddings": False},
    {"share_all_embeddings": False, "share_decoder_input_output_embed": False},
    {"final_logits_bias": True, "max_source_positions": 30, "position_offset": 5},
    {"encoder_layers": 1, "decoder_layers": 3},
    {"attention_head_dim": 7},
    {"flavour": "encoder_only"},
    {"flavour": "encoder_only", "share_all_embeddings": False, "encoder_normalize_before": True},
    {"flavour": "decoder_only"},
    {"flavour": "decoder_only", "share_all_embeddings": False},
    {"source_encoder_layers": 2, "source_vocab_size": 31},
    {"encoder_learned_pos": False},
    {"encoder_learned_pos": False, "decoder_learned_pos": False},
    {"activation_fn": "prelu"},
    {"activation_fn": "xielu"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(v) or "plain")
def test_shapes_are_those_of_the_network(small, variant):
    config = small(**variant)
    made = jax.eval_shape(BART(config).init, jax.random.key(0))
    shapes = {path: {n: leaf.shape for n, leaf in leaves.items()} for path, leaves in made.items()}
    assert parameter_shapes(config) == shapes


@pytest.mark.parametrize(
    ("name", "vocabulary", "count"),
    [
        ("bart_large", 50265, 406_291_456),
        ("bart_large", 50264, 406_290_432),
        ("bart_base", 50265, 139_420_416),
        ("bart_base", 51201, 140_139_264),
    ],
)
def test_parameter_counts(name, vocabulary, count):
    shapes = parameter_shapes(architecture(name, vocab_size=vocabulary))
    assert (
        sum(np.prod(s, dtype=int) for leaves in shapes.values() for s in leaves.values()) == count
    )
    assert name in ARCHITECTURES


def test_check_names_the_first_parameter_at_fault(small, random_params):
    config = small()
    params = random_params(config)
    check_parameters(params, config)

    missing = {**params, "encoder/layers_1/fc1": {"w": params["encoder/layers_1/fc1"]["w"]}}
    with pytest.raises(ValueError, match=r"lack encoder/layers_1/fc1/b with shape \(24,\)"):
        check_parameters(missing, config)
    wrong = {**params, "embed_tokens": {"embeddings": np.zeros((50, 16))}}
    with pytest.raises(ValueError, match=r"embed_tokens/embeddings has shape \(50, 16\).*\(60, 16"):
        check_parameters(wrong, config)
    extra = {**params, "encoder/layers_2/fc1": {"w": np.zeros(3)}}
    with pytest.raises(ValueError, match="no place for the parameter encoder/layers_2/fc1/w"):
        check_parameters(extra, config)
