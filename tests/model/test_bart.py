"""The network against arithmetic and against itself; other files compare it with the oracles."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.config import BARTConfig, architecture
from bart_hk.model import BART, ClassificationHead, sentence_representation
from tests.parameters import random_params

TINY = BARTConfig(
    vocab_size=40,
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    encoder_layers=2,
    encoder_attention_heads=4,
    decoder_ffn_embed_dim=20,
    decoder_layers=3,
    decoder_attention_heads=2,
    max_source_positions=24,
    max_target_positions=20,
)
VARIANTS = {
    "bart": TINY,
    "mbart": TINY.replace(
        encoder_normalize_before=True, decoder_normalize_before=True, no_scale_embedding=False
    ),
    "separate": TINY.replace(share_all_embeddings=False),
    "untied": TINY.replace(
        share_all_embeddings=False,
        share_decoder_input_output_embed=False,
        final_logits_bias=True,
        layernorm_embedding=False,
    ),
    "wide_heads": TINY.replace(attention_head_dim=6, activation_fn="xielu"),
    "sinusoidal": TINY.replace(
        encoder_learned_pos=False, decoder_learned_pos=False, activation_fn="prelu"
    ),
    "pad0": TINY.replace(
        pad_token_id=0,
        bos_token_id=3,
        eos_token_id=4,
        decoder_start_token_id=4,
        forced_bos_token_id=None,
        forced_eos_token_id=4,
        unk_token_id=None,
    ),
}


def rows(config: BARTConfig, *lengths: int, width: int | None = None) -> jax.Array:
    """Random ids between the special ones, right-padded."""
    rng = np.random.default_rng(0)
    out = np.full((len(lengths), width or max(lengths)), config.pad_token_id)
    for i, length in enumerate(lengths):
        out[i, :length] = rng.integers(5, config.vocab_size, length)
    return jnp.asarray(out, jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def logits_of(bart, params, src_tokens, prev_output_tokens, key=None):
    source = bart.encode(params, src_tokens, key=key)
    target = bart.decode(params, prev_output_tokens, source, key=key)
    return bart.project(params, target.features)


def test_parameter_names_and_shapes():
    params = jax.eval_shape(BART(VARIANTS["untied"]).init, jax.random.key(0))
    shapes = {f"{path}/{name}": x.shape for path in params for name, x in params[path].items()}
    layer = {
        f"{block}_{norm}/{name}": (16,)
        for block, norm in (("self_attn", "layer_norm"), ("final", "layer_norm"))
        for name in ("scale", "offset")
    }
    expected = {}
    for side, layers, ffn, positions in (("encoder", 2, 24, 26), ("decoder", 3, 20, 22)):
        expected[f"{side}/embed_tokens/embeddings"] = (40, 16)
        expected[f"{side}/embed_positions/embeddings"] = (positions, 16)
        for i in range(layers):
            at = f"{side}/layers_{i}"
            expected |= {f"{at}/{name}": shape for name, shape in layer.items()}
            expected |= {f"{at}/fc1/w": (16, ffn), f"{at}/fc1/b": (ffn,)}
            expected |= {f"{at}/fc2/w": (ffn, 16), f"{at}/fc2/b": (16,)}
            for block in ("self_attn",) + (("encoder_attn",) if side == "decoder" else ()):
                for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                    expected[f"{at}/{block}/{part}/w"] = (16, 16)
                    expected[f"{at}/{block}/{part}/b"] = (16,)
            if side == "decoder":
                expected[f"{at}/encoder_attn_layer_norm/scale"] = (16,)
                expected[f"{at}/encoder_attn_layer_norm/offset"] = (16,)
    expected["output_projection/w"] = (16, 40)
    expected["final_logits_bias/b"] = (40,)
    assert shapes == expected


@pytest.mark.parametrize(
    ("name", "vocab_size", "count"),
    [
        ("bart_large", 50265, 406_291_456),
        ("bart_base", 50265, 139_420_416),
        ("bart_base", 51201, 140_139_264),
    ],
)
def test_parameter_counts_are_the_published_ones(name, vocab_size, count):
    bart = BART(architecture(name, vocab_size=vocab_size))
    shapes = jax.eval_shape(bart.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize("name", VARIANTS)
def test_a_row_does_not_depend_on_its_neighbours_or_padding(name):
    config = VARIANTS[name]
    bart = BART(config)
    params = random_params(bart.config)
    src, prev = rows(config, 9, 3, 6), rows(config, 4, 7, 1)
    together = logits_of(bart, params, src, prev)
    alone = logits_of(bart, params, src[1:2, :3], prev[1:2, :7])[0]
    np.testing.assert_allclose(together[1, :7], alone, atol=2e-5)
    wider = jnp.pad(src, ((0, 0), (0, 5)), constant_values=config.pad_token_id)
    np.testing.assert_allclose(logits_of(bart, params, wider, prev), together, atol=2e-5)


def test_padding_on_the_left_gives_the_same_encoding():
    bart = BART(TINY)
    params = random_params(bart.config)
    src = rows(TINY, 6)
    encode = jax.jit(bart.encode)
    right = encode(params, jnp.pad(src, ((0, 0), (0, 3)), constant_values=1)).encoder_out
    left = encode(params, jnp.pad(src, ((0, 0), (3, 0)), constant_values=1)).encoder_out
    np.testing.assert_allclose(left[:, 3:], right[:, :6], atol=2e-5)


@pytest.mark.parametrize("name", VARIANTS)
def test_steps_equal_teacher_forcing_whatever_beams_descend_from(name):
    config = VARIANTS[name]
    bart = BART(config)
    params = random_params(bart.config)
    batch, beam, length = 2, 3, 6
    source = jax.jit(bart.encode)(params, rows(config, 7, 4))
    cache = jax.jit(bart.start, static_argnums=(2, 3))(params, source, beam, 4)
    step = jax.jit(functools.partial(bart.step, return_features=True))
    decode = jax.jit(lambda *args: bart.decode(params, *args).features)
    step_params = bart.for_steps(params)
    rng = np.random.default_rng(1)
    history = np.full((batch, beam, length), config.pad_token_id, np.int32)
    ancestors = np.zeros((batch, beam, length, beam), bool)
    take = np.arange(batch)[:, None]
    for t in range(length):
        if t == 4:
            cache = bart.extend(cache, beam, length)  # room is made as it is needed
        # Every beam goes on from a beam drawn at random, so slots are shared and abandoned.
        parents = rng.integers(0, beam, (batch, beam))
        history, ancestors = history[take, parents], ancestors[take, parents]
        tokens = history[:, :, t] = rng.integers(5, config.vocab_size, (batch, beam))
        ancestors[:, np.arange(beam), t, np.arange(beam)] = True
        room = cache.values[0].shape[2] // beam
        logits, cache, _, features = step(
            step_params, jnp.asarray(tokens, jnp.int32), jnp.int32(t), cache, ancestors[:, :, :room]
        )
        for w in range(beam):
            whole = decode(history[:, w], source)[:, t]
            expected = bart.project(params, whole)
            np.testing.assert_allclose(logits[:, :, w].T, expected, rtol=1e-5, atol=2e-5)
            np.testing.assert_allclose(features[:, :, w].T, whole, rtol=1e-5, atol=2e-5)


def test_a_fully_padded_row_gives_no_nan():
    bart = BART(TINY)
    params = random_params(bart.config)
    src = rows(TINY, 5, 0)

    def loss(params):
        return jnp.sum(jnp.square(logits_of(bart, params, src, src)))

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    "rate",
    [
        "dropout",
        "attention_dropout",
        "activation_dropout",
        "encoder_layerdrop",
        "decoder_layerdrop",
    ],
)
def test_each_dropout_acts_in_training_only_and_by_its_key(rate):
    still = TINY.replace(dropout=0.0)
    bart, plain = BART(still.replace(**{rate: 0.5})), BART(still)
    params = random_params(still)
    src, prev = rows(TINY, 9, 5), rows(TINY, 6, 8)
    expected = logits_of(plain, params, src, prev)
    np.testing.assert_array_equal(logits_of(bart, params, src, prev), expected)
    np.testing.assert_array_equal(logits_of(plain, params, src, prev, jax.random.key(1)), expected)
    draws = [logits_of(bart, params, src, prev, jax.random.key(i)) for i in range(6)]
    assert len({draw.tobytes() for draw in map(np.asarray, draws)}) > 1
    again = logits_of(bart, params, src, prev, jax.random.key(0))
    np.testing.assert_array_equal(again, draws[0])


@pytest.mark.parametrize("shape", [(200, 200), (3, 91, 151)])  # an odd number of elements, too
def test_dropout_keeps_the_expectation_and_its_elements_are_independent(shape):
    import haiku as hk

    from bart_hk.model.layers import dropout

    apply = hk.transform(lambda: dropout(jnp.ones(shape), 0.3, True)).apply
    dropped, other = (np.asarray(apply({}, jax.random.key(i))) for i in range(2))
    assert dropped.shape == shape
    kept = dropped != 0
    assert abs(kept.mean() - 0.7) < 0.01
    np.testing.assert_allclose(dropped[kept], 1 / 0.7, rtol=1e-6)
    # Four elements come of one block of random bits: neighbours agree as often as strangers do.
    line = kept.reshape(-1)
    for near in [line[1:] == line[:-1], line[2:] == line[:-2], line[3:] == line[:-3]]:
        assert abs(near.mean() - 0.58) < 0.015
    half = len(line) // 2
    for far in [line[:half] == line[half : 2 * half], line == (other != 0).reshape(-1)]:
        assert abs(far.mean() - 0.58) < 0.015


def test_layerdrop_skips_whole_layers():
    config = TINY.replace(dropout=0.0, encoder_layerdrop=0.5)
    bart = BART(config)
    params = random_params(bart.config)
    src = rows(config, 8)
    encode = jax.jit(lambda key: bart.encode(params, src, key=key, return_all_hiddens=True))
    skipped = []
    for i in range(20):
        states = encode(jax.random.key(i)).hidden_states
        skipped += [bool((a == b).all()) for a, b in zip(states, states[1:], strict=False)]
    assert 0.25 < np.mean(skipped) < 0.75


@pytest.mark.parametrize("name", ["bart", "mbart"])
def test_hidden_states_and_attention_come_out(name):
    config = VARIANTS[name]
    bart = BART(config)
    params = random_params(bart.config)
    src, prev = rows(config, 7, 4), rows(config, 5, 5)
    everything = functools.partial(
        jax.jit, static_argnames=("return_all_hiddens", "return_attention")
    )
    encode, decode = everything(bart.encode), everything(bart.decode)
    source = encode(params, src, return_all_hiddens=True, return_attention=True)
    target = decode(params, prev, source, return_all_hiddens=True, return_attention=True)
    assert len(source.hidden_states) == 3 and len(target.hidden_states) == 4
    # Post-norm: the last state is the output. Pre-norm: a layer norm follows it.
    same = config is TINY
    assert bool((source.hidden_states[-1] == source.encoder_out).all()) is same
    assert bool((target.hidden_states[-1] == target.features).all()) is same
    for layers, shape in (
        (source.attentions, (2, 4, 7, 7)),
        (target.self_attentions, (2, 2, 5, 5)),
        (target.cross_attentions, (2, 2, 5, 7)),
    ):
        for weights in layers:
            assert weights.shape == shape and weights.dtype == jnp.float32
            np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert not np.any(np.asarray(target.cross_attentions[0])[1, :, :, 4:])
    assert not np.any(np.triu(np.asarray(target.self_attentions[0])[0, 0], 1))
    plain = decode(params, prev, encode(params, src))
    np.testing.assert_allclose(plain.features, target.features, atol=1e-6)
    assert plain.hidden_states is plain.cross_attentions is None


def test_initialisation_is_fairseqs():
    config = TINY.replace(vocab_size=2000, encoder_embed_dim=64, encoder_ffn_embed_dim=256)
    params = BART(config).init(jax.random.key(0))
    for path in ("embed_tokens", "encoder/layers_0/fc1", "decoder/layers_2/encoder_attn/k_proj"):
        weights = np.asarray(params[path].get("w", params[path].get("embeddings")))
        assert abs(weights.std() - 0.02) < 0.001 and abs(weights.mean()) < 0.001
    assert not np.any(params["encoder/layers_0/fc1"]["b"])
    assert np.all(np.asarray(params["encoder/layers_0/final_layer_norm"]["scale"]) == 1)
    # The row of padding: zero for positions, drawn for a table that is also the projection.
    assert not np.any(params["encoder/embed_positions"]["embeddings"][1])
    assert np.any(params["encoder/embed_positions"]["embeddings"][2])
    assert np.any(params["embed_tokens"]["embeddings"][1])
    separate = BART(VARIANTS["untied"]).init(jax.random.key(0))
    assert not np.any(separate["decoder/embed_tokens"]["embeddings"][1])
    assert not np.any(separate["encoder/embed_tokens"]["embeddings"][1])
    tied = BART(VARIANTS["separate"]).init(jax.random.key(0))
    assert np.any(tied["decoder/embed_tokens"]["embeddings"][1])
    assert not np.any(tied["encoder/embed_tokens"]["embeddings"][1])


@pytest.mark.parametrize("name", VARIANTS)
def test_bfloat16_is_near_and_its_logits_are_float32(name):
    config = VARIANTS[name]
    params = random_params(config, 0.05)
    src, prev = rows(config, 9, 4), rows(config, 5, 6)
    exact = logits_of(BART(config), params, src, prev)
    bart = BART(config, jnp.bfloat16)
    assert jax.eval_shape(bart.encode, params, src).encoder_out.dtype == jnp.bfloat16
    near = logits_of(bart, params, src, prev)
    assert near.dtype == jnp.float32
    scale = float(jnp.abs(exact).max())
    np.testing.assert_allclose(near, exact, atol=0.05 * scale)
    assert not np.array_equal(near, exact)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    assert logits_of(bart, half, src, prev).dtype == jnp.float32


def test_a_wrong_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype=int32 is not a floating type"):
        BART(TINY, jnp.int32)


def test_equal_networks_are_equal():
    assert BART(TINY) == BART(dataclasses.replace(TINY)) != BART(TINY, jnp.bfloat16)
    assert hash(BART(TINY)) == hash(BART(dataclasses.replace(TINY)))


def test_transformations_compose():
    """jit, grad, vmap and remat around the pure functions (Haiku forbids some inside)."""
    bart = BART(TINY.replace(encoder_layers=1, decoder_layers=1))
    params = random_params(bart.config)
    src = rows(TINY, 5, 3)

    def loss(params, src):
        return logits_of(bart, params, src[None], src[None]).sum()

    whole = jax.jit(jax.grad(lambda p: loss(p, src[0]) + loss(p, src[1])))(params)
    mapped = jax.jit(jax.vmap(jax.grad(jax.checkpoint(loss)), (None, 0)))(params, src)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(mapped), strict=True):
        np.testing.assert_allclose(a, b.sum(0), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_sentence_representation_is_the_feature_at_the_last_eos_of_each_row(name):
    config = VARIANTS[name]
    bart, eos, pad = BART(config), config.eos_token_id, config.pad_token_id
    params = random_params(config)
    src = jnp.array([[9, 7, eos, pad, pad, pad], [9, 7, eos, 8, eos, pad]])
    shifted = jnp.array([[eos, 9, 7, pad, pad, pad], [eos, 9, 7, eos, 8, pad]])

    @jax.jit
    def both(params):
        whole = bart.decode(params, shifted, bart.encode(params, src)).features
        return sentence_representation(bart, params, src, shifted), whole

    found, whole = both(params)
    np.testing.assert_allclose(found, whole[np.arange(2), [2, 4]], atol=2e-5)


def test_head_computes_what_fairseqs_does():
    head = ClassificationHead(TINY, 3, inner_dim=5)
    params = head.init(jax.random.key(0))
    assert {k: {n: x.shape for n, x in v.items()} for k, v in params.items()} == {
        "dense": {"w": (16, 5), "b": (5,)},
        "out_proj": {"w": (5, 3), "b": (3,)},
    }
    # torch's default for nn.Linear: uniform up to 1 / sqrt(inputs), biases too.
    for part, inputs in (("dense", 16), ("out_proj", 5)):
        for x in params[part].values():
            assert 0 < np.abs(x).max() <= inputs**-0.5
    x = jax.random.normal(jax.random.key(1), (4, 16))
    hidden = np.tanh(x @ params["dense"]["w"] + params["dense"]["b"])
    expected = hidden @ params["out_proj"]["w"] + params["out_proj"]["b"]
    np.testing.assert_allclose(head.apply(params, x), expected, atol=1e-6)
    dropping = ClassificationHead(TINY.replace(pooler_dropout=0.5), 3, inner_dim=5)
    np.testing.assert_allclose(dropping.apply(params, x), expected, atol=1e-6)
    assert not np.allclose(dropping.apply(params, x, jax.random.key(2)), expected, atol=1e-3)


def test_wider_heads_that_add_nothing():
    """Twice the width of the heads, with zeros in what is new, is the same network: the scale is
    that of a head's own width."""
    config = TINY.replace(encoder_attention_heads=2, decoder_attention_heads=2)
    wide = config.replace(attention_head_dim=config.encoder_embed_dim)
    params = random_params(config)
    heads, width = 2, config.encoder_embed_dim // 2

    def widen(path: str, leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        part = path.rpartition("/")[2]
        if part not in ("q_proj", "k_proj", "v_proj", "out_proj"):
            return leaves
        scale = 2**0.5 if part == "q_proj" else 1.0
        w, b = leaves["w"], leaves["b"]
        if part == "out_proj":
            split = w.reshape(heads, width, -1)
            return {"w": np.concatenate([split, 0 * split], 1).reshape(-1, w.shape[1]), "b": b}
        split, bias = w.reshape(-1, heads, width), b.reshape(heads, width)
        return {
            "w": scale * np.concatenate([split, 0 * split], 2).reshape(w.shape[0], -1),
            "b": scale * np.concatenate([bias, 0 * bias], 1).reshape(-1),
        }

    wider = {path: widen(path, leaves) for path, leaves in params.items()}
    source, target = rows(config, 7, 4), rows(config, 5, 6)

    def features(config, params):
        bart = BART(config)
        return np.asarray(bart.decode(params, target, bart.encode(params, source)).features)

    found, expected = features(wide, wider), features(config, params)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
