"""Every method of the search: rows on their own, forms that must agree, plain references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.config import BARTConfig
from bart_hk.data.batching import pad_rows
from bart_hk.generation.generator import Generator
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.scorer import Scorer
from bart_hk.generation.trie import Trie
from bart_hk.model import BART, Ensemble
from tests.parameters import random_params

EOS = 2
TRIE = Trie([[0, 7, 8, 2], [0, 7, 9, 9, 2], [0, 11], [0, 11, 12, 5, 6], [0, 5]], eos=EOS)
PHRASES = [[[7, 8], [30]], [], [[5]], [[9, 9]]]
METHODS = {
    "plain": ({"beam": 4}, {}),
    "sampling": ({"beam": 3, "sampling": True, "temperature": 1.5}, {}),
    "topk": ({"beam": 3, "sampling": True, "sampling_topk": 4, "temperature": 2.0}, {}),
    "topp": ({"beam": 3, "sampling": True, "sampling_topp": 0.9, "temperature": 2.0}, {}),
    "beam_sampling": ({"beam": 3, "beam_sampling": True, "temperature": 2.0}, {}),
    "groups": ({"beam": 4, "diverse_beam_groups": 2}, {}),
    "siblings": ({"beam": 3, "diversity_rate": 0.5}, {}),
    "never": ({"beam": 3, "early_stopping": "never", "lenpen": 2.0}, {}),
    "contrastive": ({"beam": 1, "penalty_alpha": 0.6, "sampling_topk": 4}, {}),
    "repetition": ({"beam": 3, "repetition_penalty": 1.5}, {}),
    "suppress": ({"beam": 3, "suppress_tokens": (10, 11, 46)}, {}),
    "encoder": (
        {"beam": 3, "encoder_repetition_penalty": 0.5, "encoder_no_repeat_ngram_size": 2},
        {},
    ),
    "unordered": ({"beam": 5}, {"constraints": PHRASES}),
    "ordered": ({"beam": 5, "constraints": "ordered"}, {"constraints": PHRASES}),
    "prefix": ({"beam": 3}, {"prefix_tokens": [[0, 7, 8], [0], [], [0, 9, 9, 9]]}),
    "trie": ({"beam": 4}, {"prefix_allowed_tokens_fn": TRIE}),
}


@pytest.fixture(scope="module")
def model(trained):
    return BART(trained("post_norm")[0])


@pytest.fixture(scope="module")
def generator(model):
    return Generator(model)


@pytest.fixture(scope="module")
def sources(golden):
    """Four rows of different lengths in one bucket: compiling takes most of the time here."""
    rows = golden("generation/cases.json")["models"]["post_norm"]["sources"]
    return [np.array(row) for row in rows if 8 < len(row) <= 16][:4]


def ids_of(found):
    return [[h["tokens"].tolist() for h in hypotheses] for hypotheses in found]


def assert_same(found, expected):
    assert ids_of(found) == ids_of(expected)
    for ours, theirs in zip(sum(found, []), sum(expected, []), strict=True):
        np.testing.assert_allclose(ours["score"], theirs["score"], atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_rows_result_is_its_own(generator, params, sources, name):
    """Alone, in another order and in other batches it is the same; of samples too."""
    options, inputs = METHODS[name]
    options = GenerationOptions(max_len_b=20, **options)
    together = generator.generate(params, sources, options, **inputs)
    plain = GenerationOptions(max_len_b=20, beam=options.beam)
    assert name == "plain" or ids_of(together) != ids_of(generator.generate(params, sources, plain))
    order = [2, 0, 3, 1]

    def of(row):
        return {
            key: value if isinstance(value, Trie) else [value[row]] for key, value in inputs.items()
        }

    for row in order:
        alone = generator.generate(params, [sources[row]], options, **of(row))
        assert_same(alone, [together[row]])
    turned = {
        key: value if isinstance(value, Trie) else [value[row] for row in order]
        for key, value in inputs.items()
    }
    again = generator.generate(
        params, [sources[row] for row in order], options, batch_size=3, **turned
    )
    assert_same(again, [together[row] for row in order])


def test_samples_differ_by_seed_and_between_equal_rows(generator, params, sources):
    options = {"beam": 4, "sampling": True, "temperature": 2.0, "max_len_b": 20}
    rows = [sources[0]] * 3
    found = ids_of(generator.generate(params, rows, GenerationOptions(**options)))
    again = ids_of(generator.generate(params, rows, GenerationOptions(**options)))
    other = ids_of(generator.generate(params, rows, GenerationOptions(seed=2, **options)))
    assert found == again
    every = [tuple(tokens) for hypotheses in found + other for tokens in hypotheses]
    assert len(set(every)) > len(every) - 4


def test_the_scores_of_samples_are_those_of_teacher_forcing(generator, params, sources):
    options = GenerationOptions(beam=3, sampling=True, sampling_topk=5, max_len_b=20)
    found = generator.generate(params, sources, options)
    pairs = [(row, h) for row, hypotheses in zip(sources, found, strict=True) for h in hypotheses]
    scored = Scorer(generator.bart).score(
        params, [row for row, _ in pairs], [h["tokens"] for _, h in pairs]
    )
    for (_, hypothesis), again in zip(pairs, scored, strict=True):
        np.testing.assert_allclose(
            hypothesis["positional_scores"], again["positional_scores"], atol=1e-4
        )


@pytest.mark.parametrize("sampling", [False, True])
def test_a_stream_gives_what_generate_gives(generator, params, sources, sampling):
    options = GenerationOptions(beam=1, sampling=sampling, temperature=1.5, min_len=36)
    for row in sources[:2]:
        (expected,) = ids_of(generator.generate(params, [row], options))
        stream = generator.stream(params, row, options, prefix_tokens=[0, 7])
        assert list(stream)[:2] == [0, 7]
        stream = generator.stream(params, row, options)
        assert next(stream) == 0
        assert [0, *stream] == expected[0]
        assert len(expected[0]) > 36  # the cache grew on the way


def test_a_stream_is_of_one_hypothesis(generator, params, sources):
    for options in ({"beam": 2}, {"beam": 1, "penalty_alpha": 0.5, "sampling_topk": 3}):
        with pytest.raises(ValueError, match="a stream follows one hypothesis"):
            generator.stream(params, sources[0], GenerationOptions(**options))
    with pytest.raises(ValueError, match="early_stopping must be True, not 'never'"):
        generator.stream(params, sources[0], GenerationOptions(beam=1, early_stopping="never"))


def test_what_was_encoded_before_is_not_encoded_again(generator, params, sources):
    options = GenerationOptions(beam=3, max_len_b=20)
    expected = generator.generate(params, sources, options)
    padded = pad_rows(sources, 1)
    encoded = generator.bart.encode(params, padded, return_all_hiddens=True)
    assert_same(generator.generate(params, sources, options, encoder_out=encoded), expected)
    assert_same(
        generator.generate(params, sources, options, encoder_out=encoded, batch_size=3), expected
    )
    # It is what was encoded that counts, not the rows.
    turned = generator.bart.encode(params, padded[::-1])
    rows = [np.full(len(row), 5) for row in sources[::-1]]
    found = generator.generate(params, rows, options, encoder_out=turned)
    assert_same(found, expected[::-1])
    short = generator.bart.encode(params, padded[:, :3])
    for wrong, count, message in (
        (encoded, 2, "encoder_out of 4 rows does not go with 2 inputs"),
        (short, 4, "encoder_out has 3 tokens for input 0, which has"),
        (turned, 4, "tokens for input 1, which has .*; encode the same rows in the same order"),
        (encoded._replace(encoder_out=encoded.encoder_out[..., :7]), 4, "encode with the same mod"),
        (encoded.encoder_out, 4, "encoder_out must be what model.encode gives, not a Array"),
        ((encoded,), 4, "must be what model.encode gives, not a tuple"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.generate(params, sources[:count], options, encoder_out=wrong)
    ensemble = Generator(Ensemble((generator.bart, generator.bart)))
    with pytest.raises(ValueError, match="of an ensemble of 2 must be a tuple"):
        ensemble.generate((params, params), sources, options, encoder_out=encoded)


@pytest.mark.parametrize("options", [{"beam": 4}, {"beam": 4, "beam_sampling": True}], ids=str)
def test_a_trie_restricts_as_the_function_that_it_is(generator, params, sources, options):
    options = GenerationOptions(max_len_b=8, **options)
    on_device = generator.generate(params, sources, options, prefix_allowed_tokens_fn=TRIE)
    asked = generator.generate(params, sources, options, prefix_allowed_tokens_fn=TRIE.__call__)
    assert_same(on_device, asked)
    allowed = {(0, 7, 8, 2), (0, 7, 9, 9, 2), (0, 11, 2), (0, 11, 12, 5, 6, 2), (0, 5, 2)}
    for hypotheses in ids_of(on_device):
        assert hypotheses and {tuple(tokens) for tokens in hypotheses} <= allowed


def test_a_function_hears_which_row_asks_and_what_it_has(generator, params, sources):
    heard = []

    def allow(row, ids):
        heard.append((row, ids.tolist()))
        return [[7, 8], [9], [10, 11, 12], [5]][row] if len(ids) < 4 else [EOS]

    options = GenerationOptions(beam=2, max_len_b=8)
    found = generator.generate(
        params, sources, options, prefix_allowed_tokens_fn=allow, batch_size=2
    )
    for row, hypotheses in enumerate(ids_of(found)):
        for first, *body, last in hypotheses:
            assert (first, last) == (0, EOS) and len(body) == 2
            assert set(body) <= set([[7, 8], [9], [10, 11, 12], [5]][row])
    assert {row for row, _ in heard} == {0, 1, 2, 3}
    # The forced <s> is nobody's choice; the decoder's start token comes first.
    assert all(ids[:2] == [EOS, 0] for _, ids in heard)


def contrastive_reference(model, params, source, alpha, k, max_len, min_len=1):
    """The definition, token by token, with a full pass for every candidate."""
    source = model.encode(params, jnp.asarray(source)[None])

    @jax.jit
    def run(ids, count):
        features = model.decode(params, ids, source).features
        return features[0], model.project(params, features[0, count - 1])

    def read(ids):
        padded = np.full((1, max_len + 4), 1)
        padded[0, : len(ids)] = ids
        features, logits = run(padded, len(ids))
        return np.asarray(features)[: len(ids)], np.asarray(logits, np.float64)

    tokens, total = [EOS], 0.0
    features, logits = read(tokens)
    while True:
        count = len(tokens) - 1
        allowed = np.ones(len(logits), bool)
        allowed[1] = False
        if count == 0:
            allowed = np.arange(len(logits)) == 0  # the forced <s>
        elif count >= max_len:
            allowed = np.arange(len(logits)) == EOS
        elif count < min_len:
            allowed[EOS] = False
        log_probs = logits - np.log(np.exp(logits).sum())
        p = np.where(allowed, np.exp(log_probs), 0)
        p /= p.sum()
        values = {}
        for token in np.argsort(-p, kind="stable")[:k]:
            if p[token]:
                last = read([*tokens, int(token)])[0]
                unit = last / np.linalg.norm(last, axis=1, keepdims=True)
                values[token] = (1 - alpha) * p[token] - alpha * (unit[:-1] @ unit[-1]).max()
        token = int(max(values, key=values.get))
        total += log_probs[token]
        tokens.append(token)
        if token == EOS:
            return tokens[1:], total / (len(tokens) - 1)
        features, logits = read(tokens)


@pytest.mark.parametrize(("alpha", "k", "min_len"), [(0.6, 4, 1), (0.3, 3, 12), (0.9, 6, 1)])
def test_contrastive_search_is_its_definition(generator, params, sources, alpha, k, min_len):
    options = {"beam": 1, "penalty_alpha": alpha, "sampling_topk": k, "max_len_b": 14}
    options = GenerationOptions(min_len=min_len, **options)
    found = generator.generate(params, sources, options)
    greedy = generator.generate(
        params, sources, GenerationOptions(beam=1, max_len_b=14, min_len=min_len)
    )
    assert ids_of(found) != ids_of(greedy)
    for source, (hypothesis,) in zip(sources, found, strict=True):
        tokens, score = contrastive_reference(
            generator.bart, params, source, alpha, k, max_len=14, min_len=min_len
        )
        assert hypothesis["tokens"].tolist() == tokens
        np.testing.assert_allclose(hypothesis["score"], score, atol=1e-4)


def bigrams(vocabulary):
    """A language model of two words, and its log probabilities [N, V] after each id of a row."""
    table = np.random.default_rng(0).normal(0, 2, (vocabulary, vocabulary)).astype(np.float32)
    table = jax.nn.log_softmax(jnp.asarray(table), axis=1)
    return lambda tokens, length: table[jnp.take(tokens, length - 1, axis=1)], table.__getitem__


def a_decoder(vocabulary):
    """The same of a BART without an encoder."""
    sizes = {"vocab_size": vocabulary, "encoder_embed_dim": 16, "decoder_ffn_embed_dim": 16}
    sizes |= {"decoder_layers": 1, "decoder_attention_heads": 2, "max_target_positions": 64}
    bart = BART(BARTConfig(flavour="decoder_only", **sizes))
    params = random_params(bart.config, 0.5)

    def after_each(tokens):
        features = bart.decode(params, tokens).features
        return jax.nn.log_softmax(bart.project(params, features))

    def lm(tokens, length):
        return jnp.take(after_each(tokens), length - 1, axis=1)

    return lm, lambda tokens: after_each(tokens[None])[0]


@pytest.mark.parametrize("kind", [bigrams, a_decoder])
def test_a_language_model_is_added(generator, params, sources, kind):
    lm, after_each = kind(generator.bart.config.vocab_size)
    plain = GenerationOptions(beam=3, max_len_b=12)
    options = GenerationOptions(beam=3, max_len_b=12, lm_weight=0.4)
    found = generator.generate(params, sources, options, lm=lm)
    assert ids_of(found) != ids_of(generator.generate(params, sources, plain))
    scorer = Scorer(generator.bart)
    for source, hypotheses in zip(sources, found, strict=True):
        for hypothesis in hypotheses:
            tokens = hypothesis["tokens"]
            alone = scorer.score(params, [source], [tokens])[0]["positional_scores"]
            before = np.full(14, EOS)  # of one length, which is compiled once
            before[1 : len(tokens)] = tokens[:-1]
            log_probs = np.asarray(after_each(before))
            added = 0.4 * log_probs[np.arange(len(tokens)), tokens]
            np.testing.assert_allclose(hypothesis["positional_scores"], alone + added, atol=1e-4)


def test_alignments_come_where_they_are_asked_for(generator, params, sources):
    for kind in ("hard", "soft"):
        options = GenerationOptions(beam=2, max_len_b=10, print_alignment=kind)
        found = generator.generate(params, sources, options)
        bare = generator.generate(params, sources, options, attention=False)
        for hypotheses, without in zip(found, bare, strict=True):
            for h, same in zip(hypotheses, without, strict=True):
                assert same["attention"].size == 0
                np.testing.assert_array_equal(h["alignment"], same["alignment"])
                if kind == "soft":
                    np.testing.assert_array_equal(h["alignment"], h["attention"].T)
                else:
                    inside = h["attention"][:-1]  # </s> is aligned with nothing
                    expected = inside.argmax(axis=0)[: len(h["tokens"]) - 1]
                    assert h["alignment"] == list(zip(expected, range(len(expected)), strict=True))


def test_nbest_gives_the_first_of_them(generator, params, sources):
    every = generator.generate(params, sources, GenerationOptions(beam=4, max_len_b=12))
    few = generator.generate(params, sources, GenerationOptions(beam=4, nbest=2, max_len_b=12))
    assert_same(few, [hypotheses[:2] for hypotheses in every])


def test_a_first_token_can_be_asked_for(generator, params, sources):
    options = GenerationOptions(beam=2, max_len_b=12, forced_bos_token_id=7)
    found = ids_of(generator.generate(params, sources, options))
    assert all(tokens[0] == 7 for hypotheses in found for tokens in hypotheses)
    prefixed = GenerationOptions(beam=2, max_len_b=12)
    prefixes = [[7]] * 4
    assert found == ids_of(generator.generate(params, sources, prefixed, prefix_tokens=prefixes))


def test_options_of_the_same_rules_compile_once(generator, params, sources):
    options = {"sampling": {"sampling_topp": 0.7}, "groups": {"diverse_beam_strength": 0.2}}
    options |= {
        "repetition": {"repetition_penalty": 2.0},
        "suppress": {"suppress_tokens": (5, 6, 7)},
        "encoder": {"encoder_repetition_penalty": 2.0},
    }
    options |= {"plain": {"lenpen": 2.0, "unkpen": 1.0, "min_len": 3}}
    for name, changes in options.items():
        base, inputs = METHODS[name]
        if name == "sampling":
            base = base | {"sampling_topp": 0.9}
        generator.generate(params, sources, GenerationOptions(max_len_b=20, **base), **inputs)
        counts = [f._cache_size() for f in (generator._begin, generator._search)]
        generator.generate(
            params, sources, GenerationOptions(max_len_b=18, **(base | changes)), **inputs
        )
        assert [f._cache_size() for f in (generator._begin, generator._search)] == counts, name
    for prefixes in ([[0, 7, 9]] * 4, [[0, 7, 9, 9], [0, 7, 5], [0], []]):
        plain = GenerationOptions(beam=4, max_len_b=18)
        generator.generate(params, sources, plain, prefix_tokens=prefixes)
        counts.append(generator._search._cache_size())
    assert counts[-1] == counts[-2]
