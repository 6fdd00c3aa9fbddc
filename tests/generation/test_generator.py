"""Lists in, lists out: alignment, neighbours, shapes, dtypes, compilations and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk import kernels
from bart_hk.config import BARTConfig
from bart_hk.generation.generator import Generator
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.scorer import Scorer
from bart_hk.model import BART
from tests.parameters import random_params

TINY = BARTConfig(
    vocab_size=40,
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    encoder_layers=1,
    encoder_attention_heads=2,
    decoder_ffn_embed_dim=24,
    decoder_layers=1,
    decoder_attention_heads=2,
    max_source_positions=32,
    max_target_positions=16,
)
BEAM_3 = GenerationOptions(beam=3, max_len_b=12)


def sources(*lengths: int, seed: int = 0) -> list[np.ndarray]:
    """<s> ... </s> of the given lengths; a source of one token is </s> alone."""
    rng = np.random.default_rng(seed)
    rows = [np.append(rng.integers(5, 48, n - 1), 2) for n in lengths]
    for row in rows:
        row[:-1][:1] = 0
    return rows


def assert_same(found, expected, atol=1e-5):
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [h["tokens"].tolist() for h in ours] == [h["tokens"].tolist() for h in theirs]
        for a, b in zip(ours, theirs, strict=True):
            for key in ("score", "positional_scores", "attention"):
                np.testing.assert_allclose(a[key], b[key], atol=atol)


def test_a_rows_result_does_not_depend_on_its_neighbours(generator, params):
    rows = sources(9, 3, 25, 1, 14, 3, 8)
    together = generator.generate(params, rows, BEAM_3)
    assert len({tuple(h[0]["tokens"].tolist()) for h in together}) > 3
    assert_same([generator.generate(params, [row], BEAM_3)[0] for row in rows], together)
    # Other batches, other order.
    order = [4, 0, 6, 2, 5, 1, 3]
    turned = generator.generate(params, [rows[i] for i in order], BEAM_3, batch_size=2)
    assert_same(turned, [together[i] for i in order])


def test_the_form_of_a_hypothesis(generator, params):
    (found,) = generator.generate(params, sources(7), BEAM_3)
    assert len(found) == 3
    assert [h["score"] for h in found] == sorted((h["score"] for h in found), reverse=True)
    for hypothesis in found:
        tokens = hypothesis["tokens"]
        assert list(hypothesis) == [
            "tokens",
            "score",
            "attention",
            "alignment",
            "positional_scores",
        ]
        assert tokens.dtype == np.int32 and tokens[0] == 0 and tokens[-1] == 2
        assert hypothesis["score"].dtype == np.float32 and hypothesis["score"].shape == ()
        mean = hypothesis["positional_scores"].sum() / len(tokens)
        assert hypothesis["score"] == pytest.approx(mean, abs=1e-6)
        assert hypothesis["attention"].shape == (7, len(tokens))
        np.testing.assert_allclose(hypothesis["attention"].sum(axis=0), 1, atol=1e-5)
        assert hypothesis["alignment"].shape == (0,)


def test_without_attention_the_rest_is_the_same(generator, params):
    rows = sources(7, 4)
    found = generator.generate(params, rows, BEAM_3, attention=False)
    for ours, theirs in zip(found, generator.generate(params, rows, BEAM_3), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a["attention"].shape == (0,)
            np.testing.assert_array_equal(a["tokens"], b["tokens"])


def test_special_ids_come_from_the_config():
    config = TINY.replace(
        pad_token_id=0,
        bos_token_id=38,
        eos_token_id=39,
        unk_token_id=None,
        decoder_start_token_id=38,
        forced_bos_token_id=None,
        forced_eos_token_id=39,
    )
    generator = Generator(BART(config))
    params = random_params(config, 0.1)
    rows = [np.array([38, 7, 9, 39]), np.array([38, 11, 39])]
    found = generator.generate(params, rows, GenerationOptions(beam=2, max_len_b=9))
    tokens = [h["tokens"] for hypotheses in found for h in hypotheses]
    assert all(t[-1] == 39 and 0 not in t and len(t) <= 10 for t in tokens)
    assert any(t[0] != 38 for t in tokens)  # nothing is forced
    scored = Scorer(generator.bart).score(params, [rows[0]], [tokens[0]])
    np.testing.assert_allclose(scored[0]["score"], found[0][0]["score"], atol=1e-5)
    with pytest.raises(ValueError, match="unkpen=1.0 has no meaning: this model has no <unk>"):
        generator.generate(params, rows, GenerationOptions(unkpen=1.0))


def test_the_beam_is_at_most_the_vocabulary_less_pad():
    generator = Generator(BART(TINY.replace(vocab_size=6)))
    params = random_params(generator.bart.config, 0.02)
    options = GenerationOptions(beam=50, max_len_b=3)
    assert len(generator.generate(params, [np.array([0, 4, 2])], options)[0]) == 5


def test_nothing_in_nothing_out(generator, params):
    assert generator.generate(params, [], BEAM_3) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (np.array([], np.int32), "input 1 is empty"),
        (np.zeros(33, np.int32), "input 1 has 33 tokens, but the model has only 32 positions"),
        (np.array([0, 48, 2]), "input 1 holds the id 48, outside the vocabulary of 48"),
        (np.array([0, -1, 2]), "input 1 holds the id -1, outside the vocabulary of 48"),
        (np.array([0.0, 2.0]), r"input 1 must be a 1-D array of integer ids, not float64"),
        (np.array([[0, 2]]), r"input 1 must be a 1-D array of integer ids, not int64 of shape"),
    ],
)
def test_bad_sources_are_named(generator, params, row, message):
    with pytest.raises(ValueError, match=message):
        generator.generate(params, [np.array([0, 2]), row], BEAM_3)


def test_a_length_that_cannot_be_is_refused(generator, params):
    with pytest.raises(ValueError, match="min_len=13 is larger .* of 12 tokens for input 0"):
        generator.generate(params, sources(4), GenerationOptions(max_len_b=12, min_len=13))


@pytest.mark.parametrize("with_kernels", [True, False])
def test_a_stream_compiles_once_for_each_bucket_and_options_compile_nothing(
    generator, params, with_kernels, monkeypatch
):
    assert kernels.available()
    if not with_kernels:
        monkeypatch.setattr(kernels, "serve", lambda dtype: False)
    generator = Generator(BART(generator.bart.config))  # with nothing compiled
    rng = np.random.default_rng(5)
    compiled = []

    def listen(event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def stream(count: int, options: GenerationOptions) -> int:
        """How many programs it took."""
        rows = sources(*rng.integers(2, 33, count), seed=count)
        before = len(compiled)
        generator.generate(params, rows, options, batch_size=4)
        return len(compiled) - before

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        options = GenerationOptions(beam=2, max_len_b=10)
        # Buckets 8, 16, 24 and 32, each with one program that encodes, one that makes the caches
        # and one that searches; and one for each shape of weights that is cast, or turned.
        shapes = len({x.shape for x in jax.tree.leaves(params)})
        assert 1 <= stream(60, options) <= 12 + 2 * shapes
        assert stream(75, options) == 0
        other = {"lenpen": 2.0, "min_len": 4, "max_len_b": 12, "unkpen": 1.0, "max_len_a": 0.5}
        assert stream(75, GenerationOptions(beam=2, **other)) == 0
        assert stream(75, GenerationOptions(beam=2, match_source_len=True)) == 0
        assert stream(75, GenerationOptions(beam=3, max_len_b=10)) <= 8  # nothing is encoded anew
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_parameters_that_steps_take_as_they_are_are_not_copied(generator, params):
    placed = jax.tree.map(jnp.asarray, params)
    taken = generator._step_params(placed)
    weights = placed["decoder/layers_0/fc1"]["w"]
    assert taken["decoder/layers_0/fc1"]["w"] is weights


def test_other_parameters_compile_nothing_and_change_the_result(generator, params):
    rows = sources(6, 7)
    first = generator.generate(params, rows, BEAM_3)
    sizes = [f._cache_size() for f in (generator._begin, generator._search, generator._grow)]
    second = generator.generate(jax.tree.map(lambda x: x * 0.9, params), rows, BEAM_3)
    assert sizes == [
        f._cache_size() for f in (generator._begin, generator._search, generator._grow)
    ]
    assert first[0][0]["score"] != second[0][0]["score"]
