"""Models of one stack: beside the two-stack network of the same layers, and at what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.config import BARTConfig, Flavour
from bart_hk.model import BART
from bart_hk.model.summary import module_table
from tests.parameters import random_params

BOTH = BARTConfig(
    vocab_size=40,
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    encoder_layers=2,
    encoder_attention_heads=4,
    decoder_ffn_embed_dim=20,
    decoder_layers=2,
    decoder_attention_heads=2,
    max_source_positions=24,
    max_target_positions=24,
    encoder_normalize_before=True,
    decoder_normalize_before=True,
)
READER = BOTH.replace(flavour="encoder_only")
WRITER = BOTH.replace(flavour="decoder_only")
TOKENS = jnp.asarray(np.random.default_rng(0).integers(4, 40, (3, 9)), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def run(bart, params, source, target):
    found = bart.features(params, source, target, return_all_hiddens=True, return_attention=True)
    return found, bart.project(params, found.features)


def of_one_stack(config, params):
    """What a model of `config` has of the parameters of one with both."""
    kept = BART(config)
    paths = jax.eval_shape(kept.init, jax.random.key(0))
    return kept, {path: params[path] for path in paths}


@pytest.mark.parametrize("tied", [True, False])
def test_an_encoder_alone_is_the_encoder_of_both(tied):
    tables = {"share_all_embeddings": tied, "share_decoder_input_output_embed": tied}
    params = random_params(BOTH.replace(**tables))
    reader, own = of_one_stack(READER.replace(**tables), params)
    tokens = TOKENS.at[1, 5:].set(BOTH.pad_token_id)
    found, logits = run(reader, own, tokens, None)
    expected = jax.jit(BART(BOTH.replace(**tables)).encode)(params, tokens)
    np.testing.assert_allclose(found.features, expected.encoder_out, rtol=0, atol=1e-6)
    table = params["embed_tokens"]["embeddings"].T if tied else params["output_projection"]["w"]
    np.testing.assert_allclose(logits, expected.encoder_out @ table, rtol=0, atol=1e-4)
    assert len(found.hidden_states) == 3 and found.self_attentions[0].shape == (3, 4, 9, 9)
    at = jnp.array([3, 0, 8])
    alone = jax.jit(reader.features)(own, tokens, None, at=at).features[:, 0]
    np.testing.assert_allclose(alone, found.features[jnp.arange(3), at], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def writer():
    """A decoder, and its parameters; with both stacks and an attention to the source that gives
    nothing, pre-norm's residual connections make the same network."""
    params = random_params(BOTH)
    for path, leaves in params.items():
        if path.endswith("encoder_attn/out_proj"):
            params[path] = {name: 0 * leaf for name, leaf in leaves.items()}
    return *of_one_stack(WRITER, params), params


def test_a_decoder_alone_is_a_decoder_that_sees_no_source(writer):
    bart, own, params = writer
    found, logits = run(bart, own, None, TOKENS)
    expected, expected_logits = run(BART(BOTH), params, TOKENS[:, ::-1], TOKENS)
    np.testing.assert_allclose(found.features, expected.features, rtol=0, atol=1e-5)
    np.testing.assert_allclose(logits, expected_logits, rtol=0, atol=1e-4)
    assert found.cross_attentions is None and len(found.self_attentions) == 2
    assert not any("encoder" in path for path in own)


def test_a_decoder_alone_sees_nothing_ahead(writer):
    bart, own, _ = writer
    other = TOKENS.at[:, 5].set(7)
    found, changed = (run(bart, own, None, tokens)[1] for tokens in (TOKENS, other))
    np.testing.assert_array_equal(found[:, :5], changed[:, :5])
    assert np.abs(found[:, 5:] - changed[:, 5:]).max(axis=(0, 2)).min() > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_decoder_alone_steps_as_it_reads(writer, dtype):
    bart, own, _ = writer
    bart = BART(WRITER, dtype)
    expected = run(bart, own, None, TOKENS)[1]
    cache = bart.start(own, bart.source(own, TOKENS), 1, 9)
    params, step = bart.for_steps(own), jax.jit(bart.step)
    for i in range(9):
        history = jnp.broadcast_to(jnp.arange(9) <= i, (3, 1, 9))[..., None]
        logits, cache, attention = step(params, TOKENS[:, i : i + 1], jnp.int32(i), cache, history)
        close = {"rtol": 0, "atol": 1e-4 if dtype == "float32" else 0.15}
        np.testing.assert_allclose(logits[:, :, 0].T, expected[:, i], **close)
        assert attention.shape == (3, 1, 0)


@pytest.mark.parametrize("config", [READER, WRITER], ids=lambda c: c.flavour)
def test_layers_may_be_stacked_and_recomputed(config):
    params = random_params(config)
    loss = {}
    for options in ({}, {"stack_layers": True, "checkpoint_activations": True}):
        bart = BART(config, **options)

        def summed(params, bart=bart):
            return jnp.square(bart.features(params, TOKENS, TOKENS).features[:, 3]).sum()

        loss[len(options)] = jax.jit(jax.value_and_grad(summed))(params)
    flat = [jax.tree.leaves(found) for found in loss.values()]
    for plain, stacked in zip(*flat, strict=True):
        np.testing.assert_allclose(plain, stacked, rtol=1e-4, atol=1e-4)


def test_what_needs_a_stack_that_is_not_there_is_one_line():
    encoding = "encoding a source needs an encoder, which a model of flavour=decoder_only does not "
    with pytest.raises(ValueError, match=f"{encoding}have; take one of encoder_decoder or encoder"):
        BART(WRITER).encode({}, TOKENS)
    decoding = "decoding needs a decoder, which a model of flavour=encoder_only does not have"
    with pytest.raises(ValueError, match=decoding):
        BART(READER).decode({}, TOKENS)
    with pytest.raises(ValueError, match=decoding):
        BART(READER).start({}, None, 1, 4)
    with pytest.raises(ValueError, match="flavour='decoder' is not known; choose one of: encoder_"):
        BARTConfig(flavour="decoder")


def test_fields_of_a_stack_that_is_not_there_have_no_effect():
    odd = WRITER.replace(encoder_attention_heads=7)
    assert odd.flavour is Flavour.decoder_only and odd.sides == ("decoder",)
    with pytest.raises(ValueError, match="encoder_attention_heads=7"):
        BOTH.replace(encoder_attention_heads=7)


def test_the_table_of_modules_has_one_stack():
    assert "decoder" not in module_table(READER) and "encoder" not in module_table(WRITER)
