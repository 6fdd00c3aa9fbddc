"""An encoder of other sources in front of a BART: its arithmetic, its tree, its config."""

import jax
import numpy as np
import pytest

from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.resize import extend_positions
from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import BARTConfig
from bart_hk.model import BART
from tests.parameters import random_params

CONFIG = BARTConfig(
    vocab_size=30,
    encoder_embed_dim=8,
    encoder_ffn_embed_dim=12,
    decoder_ffn_embed_dim=12,
    encoder_layers=2,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    max_source_positions=10,
    max_target_positions=10,
    source_encoder_layers=3,
    source_vocab_size=50,
)
PARAMS = random_params(CONFIG, 0.4)
ROW = np.array([[0, 45, 7, 49, 2]], np.int32)


def encoder_of(config, params, prefix):
    """An encoder alone, with the parameters under a prefix and its table."""
    alone = config.replace(flavour="encoder_only")
    mine = {
        p.removeprefix(prefix): a for p, a in params.items() if p.startswith(f"{prefix}encoder")
    }
    table = params[f"{prefix}encoder/embed_tokens" if prefix else "embed_tokens"]
    return BART(alone), {**mine, "embed_tokens": table}


def test_its_output_takes_the_place_of_token_embeddings():
    """The same from two encoders: the second has a table of what the first one says."""
    source, params = encoder_of(CONFIG.source_encoder, PARAMS, "source_")
    params.pop("encoder/embed_tokens")
    first = jax.jit(source.encode)(params, ROW).encoder_out[0]
    plain = CONFIG.replace(source_encoder_layers=0, source_vocab_size=0)
    second, params = encoder_of(plain, PARAMS, "")
    table = np.zeros((30, 8), np.float32)
    table[10:15] = first
    params["embed_tokens"] = {"embeddings": table}
    expected = jax.jit(second.encode)(params, np.arange(10, 15)[None]).encoder_out
    bart = BART(CONFIG)
    encode = jax.jit(bart.encode)
    found = encode(PARAMS, np.pad(ROW, ((0, 1), (0, 3)), constant_values=1))
    np.testing.assert_allclose(found.encoder_out[:1, :5], expected, atol=1e-5)
    assert found.src_mask.tolist() == [[True] * 5 + [False] * 3, [False] * 8]
    by_layer = BART(CONFIG, checkpoint_activations=True)
    np.testing.assert_allclose(
        jax.jit(by_layer.encode)(PARAMS, ROW).encoder_out, expected, atol=1e-5
    )


def test_the_tree_is_that_of_init(tmp_path):
    drawn = jax.eval_shape(BART(CONFIG).init, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, drawn) == parameter_shapes(CONFIG)
    assert drawn["source_encoder/embed_tokens"]["embeddings"].shape == (50, 8)
    # Written and read again; transformers, which would compute something else, refuses it.
    write_model(tmp_path / "model", CONFIG, PARAMS)
    again = read_model(tmp_path / "model")
    assert again.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, again.params, PARAMS)
    assert '"model_type": "bart_hk"' in (tmp_path / "model" / "config.json").read_text()
    longer, config = extend_positions(PARAMS, CONFIG, 16)
    assert jax.tree.map(np.shape, longer) == parameter_shapes(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source_vocab_size": 0}, "source_encoder_layers=3 and source_vocab_size=0: give both"),
        ({"source_vocab_size": 2}, "outside of source_vocab_size=2"),
        ({"source_encoder_layers": -1}, "must not be negative"),
        ({"flavour": "encoder_only"}, "needs a decoder and share_all_embeddings=True"),
        ({"flavour": "decoder_only"}, "source_encoder_layers=3 needs an encoder"),
        ({"share_all_embeddings": False}, "needs a decoder and share_all_embeddings=True"),
    ],
)
def test_a_config_that_makes_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        CONFIG.replace(**changes)
