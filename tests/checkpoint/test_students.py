import numpy as np
import pytest

from bart_hk.checkpoint.students import layers_to_copy, layers_to_supervise, student
from bart_hk.checkpoint.tree import check_parameters
from bart_hk.config import BARTConfig
from tests.parameters import random_params

CONFIG = BARTConfig(
    vocab_size=20,
    encoder_embed_dim=4,
    encoder_ffn_embed_dim=4,
    decoder_ffn_embed_dim=4,
    encoder_layers=4,
    decoder_layers=12,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    max_source_positions=8,
    max_target_positions=8,
)


def test_layers_are_distilbarts():
    assert layers_to_copy(12, 3) == (0, 6, 11)  # sshleifer/distilbart-cnn-12-3
    assert layers_to_copy(12, 6) == (0, 2, 4, 7, 9, 11)  # sshleifer/distilbart-cnn-12-6
    assert layers_to_copy(12, 12) == tuple(range(12))
    assert layers_to_copy(6, 3) == (0, 2, 5) and layers_to_copy(6, 1) == (0,)
    assert layers_to_copy(4, 2) == (0, 3) and layers_to_copy(8, 4) == (0, 2, 5, 7)
    assert layers_to_supervise(12, 3) == (3, 7, 11) and layers_to_supervise(6, 2) == (3, 5)
    assert layers_to_supervise(4, 2) == (1, 3) and layers_to_supervise(8, 3) == (1, 4, 7)
    for there in range(1, 30):
        for wanted in range(1, there + 1):
            kept = layers_to_copy(there, wanted)
            assert len(set(kept)) == wanted and kept[0] == 0 and list(kept) == sorted(kept)
            assert wanted < 3 or kept[-1] == there - 1
            taught = layers_to_supervise(there, wanted)
            assert len(set(taught)) == wanted and taught[-1] == there - 1
            assert list(taught) == sorted(taught)
    with pytest.raises(ValueError, match="13 layers cannot be taken from 12"):
        layers_to_copy(12, 13)
    with pytest.raises(ValueError, match="0 layers cannot be taken from 4"):
        layers_to_supervise(4, 0)


def test_a_student_is_a_model_of_the_teachers_layers():
    params = random_params(CONFIG)
    small, config = student(params, CONFIG, encoder_layers=2, decoder_layers=3)
    assert (config.encoder_layers, config.decoder_layers) == (2, 3)
    check_parameters(small, config)
    for side, pairs in (("encoder", [(0, 0), (1, 3)]), ("decoder", [(0, 0), (1, 6), (2, 11)])):
        for new, old in pairs:
            for path in ("fc1", "self_attn/q_proj", "final_layer_norm"):
                for name, array in params[f"{side}/layers_{old}/{path}"].items():
                    assert np.array_equal(small[f"{side}/layers_{new}/{path}"][name], array)
    assert small["embed_tokens"] is params["embed_tokens"]
    same, unchanged = student(params, CONFIG)
    assert unchanged == CONFIG and same == params
    with pytest.raises(ValueError, match="--encoder-layers 5: 5 layers cannot be taken from 4"):
        student(params, CONFIG, encoder_layers=5)
