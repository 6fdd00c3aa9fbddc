"""fairseq's tensor names, both ways; the states are real ones (tests/goldens/model)."""

import numpy as np
import pytest

from bart_hk.checkpoint.fairseq import from_fairseq, to_fairseq
from bart_hk.config import BARTConfig

CASES = ["fairseq_post_norm", "fairseq_pre_norm", "fairseq_untied", "fairseq_tied_output"]


@pytest.fixture
def real_state(golden):
    """The config and the state of a real fairseq model, with the copies that fairseq stores."""

    def read(name):
        config = BARTConfig(**golden("model/cases.json")["cases"][name]["config"])
        arrays = golden(f"model/{name}.safetensors").items()
        state = {key[8:]: array for key, array in arrays if key.startswith("weights/")}
        encoder_table = state["encoder.embed_tokens.weight"]
        decoder_table = state.setdefault("decoder.embed_tokens.weight", encoder_table)
        state.setdefault("decoder.output_projection.weight", decoder_table)
        return config, state

    return read


@pytest.mark.parametrize("name", CASES)
def test_a_real_state_comes_back_bit_for_bit(real_state, name):
    config, state = real_state(name)
    params, heads = from_fairseq(state, config)
    assert heads.keys() == {"mood"} and heads["mood"]["dense"]["w"].shape == (16, 8)
    back = to_fairseq(params, config, heads)
    assert back.keys() == state.keys()
    for key, array in state.items():
        assert back[key].dtype == array.dtype and back[key].shape == array.shape, key
        assert back[key].tobytes() == array.tobytes(), key


def test_linear_weights_are_transposed(real_state):
    config, state = real_state("fairseq_post_norm")
    params, _ = from_fairseq(state, config)
    ours = params["encoder/layers_1/fc1"]["w"]
    assert ours.shape == (16, 24)
    np.testing.assert_array_equal(ours, state["encoder.layers.1.fc1.weight"].T)


def test_copies_of_a_tied_table_need_not_be_there(real_state, assert_equal):
    config, state = real_state("fairseq_post_norm")
    expected, _ = from_fairseq(state, config)
    for copy in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        del state[copy]
    del state["encoder.version"]
    assert_equal(from_fairseq(state, config)[0], expected)


@pytest.mark.parametrize(("pad", "rows"), [(0, 15), (1, 16), (3, 18)])
def test_position_tables_begin_with_padding_id_plus_one_rows(small, random_params, pad, rows):
    config = small(pad_token_id=pad, unk_token_id=None)  # position_offset stays 2
    params = random_params(config)
    table = params["decoder/embed_positions"]["embeddings"]
    state = to_fairseq(params, config)
    stored = state["decoder.embed_positions.weight"]
    assert len(stored) == rows
    # The first token's position is pad + 1 there and position_offset here.
    np.testing.assert_array_equal(stored[pad + 1 :], table[2:])
    back = from_fairseq(state, config)[0]["decoder/embed_positions"]["embeddings"]
    np.testing.assert_array_equal(back[2:], table[2:])
    assert back.shape == table.shape


def test_misfits_are_named(real_state):
    config, state = real_state("fairseq_post_norm")
    gone = {k: v for k, v in state.items() if k != "decoder.layers.0.encoder_attn.k_proj.bias"}
    with pytest.raises(ValueError, match=r"lacks .*decoder\.layers\.0\.encoder_attn\.k_proj\.bias"):
        from_fairseq(gone, config)
    with pytest.raises(ValueError, match=r"encoder\.layer_norm\.\w+"):
        from_fairseq(state, config.replace(encoder_normalize_before=True))
    with pytest.raises(ValueError, match=r"holds encoder\.layers\.1\.fc1\.bias, .* no place"):
        from_fairseq(state, config.replace(encoder_layers=1))
    with pytest.raises(ValueError, match=r"fc1\.weight has shape \(24, 16\); .* \(16, 32\)"):
        from_fairseq(state, config.replace(encoder_ffn_embed_dim=32))
    for name in ("decoder.embed_positions.weight", "classification_heads.mood.dense.bias"):
        integers = {**state, name: state[name].astype(np.int64)}
        with pytest.raises(ValueError, match=f"{name} has dtype int64; a model's tensors are fl"):
            from_fairseq(integers, config)


def test_what_fairseq_has_not_is_refused(small, random_params):
    config = small(final_logits_bias=True)
    with pytest.raises(ValueError, match="no bias on the logits"):
        to_fairseq(random_params(config), config)
    with pytest.raises(ValueError, match="the parameters lack final_logits_bias/b"):
        to_fairseq(random_params(small()), config)
