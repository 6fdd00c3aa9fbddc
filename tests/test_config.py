import dataclasses

import pytest

from bart_hk.checkpoint.fairseq_config import nearest_architecture
from bart_hk.config import ARCHITECTURES, Activation, BARTConfig, architecture


def test_architectures_are_fairseqs():
    assert set(ARCHITECTURES) - {"bart_mini", "bart_latent"} == {
        "bart_large",
        "bart_base",
        "mbart_large",
        "mbart_base",
        "mbart_base_wmt20",
    }
    large, base = ARCHITECTURES["bart_large"], ARCHITECTURES["bart_base"]
    assert (large.encoder_embed_dim, large.encoder_ffn_embed_dim) == (1024, 4096)
    assert (large.encoder_layers, large.decoder_layers, large.encoder_attention_heads) == (
        12,
        12,
        16,
    )
    assert (base.encoder_embed_dim, base.encoder_ffn_embed_dim) == (768, 3072)
    assert (base.encoder_layers, base.decoder_layers, base.decoder_attention_heads) == (6, 6, 12)
    assert (large.dropout, large.attention_dropout, large.activation_dropout) == (0.1, 0.0, 0.0)
    assert large.no_scale_embedding and not ARCHITECTURES["mbart_large"].no_scale_embedding
    assert base.layernorm_embedding and not ARCHITECTURES["mbart_base_wmt20"].layernorm_embedding
    assert ARCHITECTURES["mbart_base"].layernorm_embedding


def test_config_is_frozen_and_hashable():
    assert hash(BARTConfig()) == hash(BARTConfig())
    with pytest.raises(dataclasses.FrozenInstanceError):
        BARTConfig().dropout = 0.5  # type: ignore[misc]


def test_activation_may_be_a_string():
    assert BARTConfig(activation_fn="relu").activation_fn is Activation.relu  # type: ignore[arg-type]
    fairseqs = BARTConfig(activation_fn="relu_squared")  # type: ignore[arg-type]
    assert fairseqs.activation_fn is Activation.relu2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_fn": "gelo"}, "activation_fn='gelo' is not known.*gelu"),
        ({"pooler_activation_fn": "prelu"}, "pooler_activation_fn=prelu has parameters, for which"),
        ({"encoder_attention_heads": 7}, "768 must be divisible by encoder_attention_heads=7"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, not 0"),
        ({"vocab_size": 2}, "eos_token_id=2 is outside the vocabulary of 2"),
        ({"decoder_layers": 0}, "decoder_layers must be at least 1, not 0"),
        ({"share_decoder_input_output_embed": False}, "share_all_embeddings=True needs"),
        ({"attention_head_dim": 0}, "attention_head_dim must be at least 1, not 0"),
        ({"position_offset": -1}, "position_offset must not be negative"),
        (
            {"encoder_learned_pos": False, "encoder_embed_dim": 2}
            | {"encoder_attention_heads": 1, "decoder_attention_heads": 1},
            "encoder_learned_pos=False needs an encoder_embed_dim of at least 4, not 2",
        ),
    ],
)
def test_values_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        architecture("bart_base", **changes)


def test_heads_of_a_width_of_their_own_need_not_divide_the_models():
    config = architecture("bart_base", attention_head_dim=32, encoder_attention_heads=7)
    assert (config.attention_dim("encoder"), config.attention_dim("decoder")) == (224, 384)
    assert architecture("bart_base").attention_dim("encoder") == 768


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(TypeError, match="no field 'encoder_layer'; did you mean 'encoder_layers'"):
        architecture("bart_base", encoder_layer=3)
    with pytest.raises(ValueError, match="no architecture 'bart_huge'; choose one of: bart_large"):
        architecture("bart_huge")


def test_our_own_are_none_of_fairseqs():
    assert nearest_architecture(ARCHITECTURES["bart_mini"]) == "bart_large"
    latent = ARCHITECTURES["bart_latent"]
    assert nearest_architecture(latent) == "bart_base" and latent.n_latent_tokens == 6
