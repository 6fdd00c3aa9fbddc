"""The bottleneck: the formula, its edges, and that nothing passes beside it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import BARTConfig, architecture
from bart_hk.model import BART
from bart_hk.model.summary import module_table
from tests.parameters import random_params

PLAIN = BARTConfig(
    vocab_size=40,
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    encoder_layers=1,
    encoder_attention_heads=2,
    decoder_ffn_embed_dim=24,
    decoder_layers=1,
    decoder_attention_heads=2,
    max_source_positions=20,
    max_target_positions=20,
    dropout=0.0,
)
FIRST = PLAIN.replace(n_latent_tokens=4, latent_token_size=3)
MEAN = FIRST.replace(latent_pooling="mean", latent_activation="identity")
DRAWN = FIRST.replace(latent_variational=True)
TOKENS = np.array([[0, 7, 9, 11, 5, 2], [0, 8, 2, 1, 1, 1]], np.int32)


@functools.partial(jax.jit, static_argnums=0)
def encode(bart: BART, params, tokens):
    return bart.encode(params, tokens)


@functools.partial(jax.jit, static_argnums=0)
def read(bart: BART, params, latents):
    """The decoder's features of `TOKENS`, of latents alone."""
    return bart.decode(params, TOKENS, bart.expand(params, latents)).features


@pytest.fixture(scope="module")
def params():
    return random_params(FIRST)


def states(bart: BART, params) -> np.ndarray:
    """What the encoder of the same model without a bottleneck gives, [B, S, D]."""
    body = {path: leaves for path, leaves in params.items() if not path.startswith("bottleneck")}
    plain = BART(bart.config.replace(n_latent_tokens=0, latent_token_size=0))
    return np.asarray(encode(plain, body, TOKENS).encoder_out)


def memory(params, latents: np.ndarray) -> np.ndarray:
    """Linear, places, layer norm, in NumPy."""
    part = {path.partition("/")[2]: v for path, v in params.items() if path.startswith("bottle")}
    x = latents @ part["from_latent"]["w"] + part["from_latent"]["b"]
    x = x + part["embed_positions"]["embeddings"]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * part["layer_norm"]["scale"] + part["layer_norm"]["offset"]


def test_the_first_states_become_the_latents(params):
    bart = BART(FIRST)
    found = encode(bart, params, TOKENS)
    to = params["bottleneck/to_latent"]
    latents = np.tanh(states(bart, params)[:, :4] @ to["w"] + to["b"])
    np.testing.assert_allclose(found.latents.mean, latents, atol=1e-5)
    assert found.latents.log_variance is None and found.latents.drawn.shape == (2, 4, 3)
    np.testing.assert_allclose(found.encoder_out, memory(params, latents), atol=1e-5)
    assert found.src_mask.shape == (2, 4) and found.src_mask.all()


def test_or_the_mean_over_real_tokens():
    bart, params = BART(MEAN), random_params(MEAN)
    found = encode(bart, params, TOKENS)
    real = (TOKENS != 1)[..., None]
    pooled = (states(bart, params) * real).sum(1) / real.sum(1)
    to = params["bottleneck/to_latent"]
    latents = (pooled @ to["w"] + to["b"]).reshape(2, 4, 3)
    np.testing.assert_allclose(found.latents.mean, latents, atol=1e-5)
    np.testing.assert_allclose(found.encoder_out, memory(params, latents), atol=1e-5)
    assert np.abs(latents).max() > 1  # which a tanh would not give


def test_a_fresh_one_has_the_originals_formula(params):
    """The vectors for places begin at zero, so that equal latent tokens are equal memories."""
    name = "bottleneck/embed_positions"
    fresh = jax.jit(lambda key: BART(FIRST).init(key)[name])(jax.random.key(0))
    assert not np.asarray(fresh["embeddings"]).any()
    memories = BART(FIRST).expand({**params, name: fresh}, jnp.ones((1, 4, 3))).encoder_out
    np.testing.assert_allclose(memories, memories[:, :1].repeat(4, 1), atol=1e-6)


@pytest.mark.parametrize("config", [FIRST, MEAN], ids=["first_n", "mean"])
def test_padding_and_neighbours_change_no_latent(config):
    bart, params = BART(config), random_params(config)
    whole, alone, wide, other = (
        np.asarray(encode(bart, params, tokens).latents.mean)
        for tokens in (
            TOKENS,
            TOKENS[1:, :3],  # fewer tokens than latent tokens
            np.pad(TOKENS[1:], ((0, 0), (0, 9)), constant_values=1),
            np.array([[0, 23, 2]], np.int32),
        )
    )
    np.testing.assert_allclose(alone[0], whole[1], atol=1e-6)
    np.testing.assert_allclose(wide[0], whole[1], atol=1e-6)
    assert (np.abs(other - alone).max(-1) > 1e-3).all()  # every one of them knows the source


def test_the_decoder_reads_the_latents_and_nothing_else(params):
    bart = BART(FIRST)
    latents = np.asarray(encode(bart, params, TOKENS).latents.mean)
    direct = jax.jit(lambda p: bart.features(p, TOKENS, TOKENS).features)(params)
    through = np.asarray(read(bart, params, latents))
    np.testing.assert_allclose(direct, through, atol=1e-5)
    for i in range(4):  # and each of them
        moved = latents.copy()
        moved[:, i] += 0.5
        assert np.abs(read(bart, params, moved) - through).max() > 1e-2


def test_steps_give_what_reading_gives(params):
    """`for_steps` and the cache know nothing of a bottleneck."""
    bart = BART(FIRST)
    source = encode(bart, params, TOKENS)
    features = read(bart, params, source.latents.mean)
    logits = np.asarray(bart.project(params, features))
    cache = bart.start(params, source, 1, 3)
    stepping, own = bart.for_steps(params), np.zeros((2, 1, 3, 1), bool)
    assert not any(path.startswith("bottleneck") for path in stepping)
    step = jax.jit(bart.step)
    for i in range(3):
        own[:, :, i] = True
        found, cache, attention = step(stepping, TOKENS[:, i : i + 1], np.int32(i), cache, own)
        np.testing.assert_allclose(found[..., 0].T, logits[:, i], atol=1e-4)
        assert attention.shape == (2, 1, 4)


def test_a_variational_one_draws_in_training_only():
    bart, params = BART(DRAWN), random_params(DRAWN, 0.2)
    still = encode(bart, params, TOKENS).latents
    np.testing.assert_array_equal(still.mean, still.drawn)
    keys = jax.random.split(jax.random.key(3), 4000)
    draw = jax.jit(jax.vmap(lambda key: bart.encode(params, TOKENS, key=key).latents.drawn))
    drawn = draw(keys)
    deviation = np.exp(np.asarray(still.log_variance) / 2)
    np.testing.assert_allclose(drawn.mean(0), still.mean, atol=0.08)
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=0.06)
    assert np.ptp(deviation) > 0.05
    np.testing.assert_array_equal(draw(keys), drawn)


def test_layer_by_layer_is_the_same(params):
    plain = encode(BART(FIRST), params, TOKENS)
    layered = encode(BART(FIRST, checkpoint_activations=True), params, TOKENS)
    np.testing.assert_allclose(layered.encoder_out, plain.encoder_out, atol=1e-5)
    np.testing.assert_allclose(layered.latents.mean, plain.latents.mean, atol=1e-5)
    half = encode(BART(FIRST, jnp.bfloat16), params, TOKENS)
    assert half.latents.mean.dtype == jnp.float32 and half.encoder_out.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.latents.mean, plain.latents.mean, atol=0.05)


@pytest.mark.parametrize("config", [FIRST, MEAN, DRAWN, MEAN.replace(latent_variational=True)])
def test_the_tree_is_the_one_that_checkpoints_know(config):
    tree = jax.eval_shape(BART(config).init, jax.random.key(0))
    shapes = {path: {n: a.shape for n, a in leaves.items()} for path, leaves in tree.items()}
    assert shapes == parameter_shapes(config)
    plain = parameter_shapes(PLAIN)
    assert plain == {p: v for p, v in shapes.items() if not p.startswith("bottleneck/")}


def test_the_table_of_modules_has_it():
    table = module_table(FIRST, batch=2, length=3)
    assert "bottleneck/from_latent" in table and "f32[2,4,16]" in table.replace(" ", "")


def test_ordinary_models_have_none_of_it():
    body = random_params(PLAIN)
    assert encode(BART(PLAIN), body, TOKENS).latents is None
    with pytest.raises(ValueError, match="n_latent_tokens=0: this model has no bottleneck"):
        BART(PLAIN).expand(body, jnp.zeros((1, 4, 3)))
    assert architecture("bart_base") == architecture("bart_latent").replace(
        n_latent_tokens=0, latent_token_size=0
    )


@pytest.mark.parametrize("shape", [(2, 4), (1, 3, 4), (1, 12), (4, 3)])
def test_latents_of_other_sizes_are_refused(params, shape):
    with pytest.raises(ValueError, match=r"latents have the shape .*, not \(B, 4, 3\)") as error:
        BART(FIRST).expand(params, jnp.zeros(shape))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_token_size": 0}, "n_latent_tokens=4 and latent_token_size=0: give both, or"),
        ({"n_latent_tokens": 0}, "n_latent_tokens=0 and latent_token_size=3: give both, or"),
        (
            {"n_latent_tokens": -1},
            "n_latent_tokens=-1 and latent_token_size=3 must not be negative",
        ),
        (
            {"n_latent_tokens": 21},
            "n_latent_tokens=21 is more than max_source_positions=20, and latent_pooling=first_n "
            "takes a position for each; lower it, or set latent_pooling=mean",
        ),
        ({"latent_pooling": "last"}, "latent_pooling='last' is not known; choose .* first_n, mean"),
        ({"latent_activation": "relu"}, "latent_activation='relu' .* choose .* tanh, identity"),
        ({"flavour": "encoder_only"}, "n_latent_tokens=4 needs a decoder"),
        ({"flavour": "decoder_only"}, "n_latent_tokens=4 needs an encoder"),
    ],
)
def test_configs_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        dataclasses.replace(FIRST, **changes)
    assert "\n" not in str(error.value)
    assert FIRST.replace(n_latent_tokens=21, latent_pooling="mean").n_latent_tokens == 21
