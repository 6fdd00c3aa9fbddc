"""Stop strings: the automaton beside `in`, and searches that end where a text holds one."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.generation.generator import Generator
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.stops import Stops, follow, start
from bart_hk.model import BART

EOS = 2
# Bytes that overlap in many ways, and an id without any.
SPELLINGS = [b"", b"a", b"b", b"ab", b"ba", b"aba", b" ", b" a", b"bb ", "é".encode(), b"\xc3"]
SPELLINGS += [b"\xa9b"]


@pytest.mark.parametrize("is_stripped", [False, True])
@pytest.mark.parametrize(
    "strings",
    [["a"], ["abab"], ["aab", "ab b", "bab"], "é", ["bé", "éb"], [" a"], ["bbbb", "bb b", "a "]],
    ids=str,
)
def test_a_text_is_stopped_by_the_token_that_completes_a_string(strings, is_stripped):
    stops = Stops.of(strings, SPELLINGS, is_stripped)
    written = [s.encode() for s in ([strings] if isinstance(strings, str) else strings)]
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, len(SPELLINGS), (40, 30))
    nodes, seen = start(40, 1), 0
    for n in range(tokens.shape[1]):
        nodes, completed = follow(stops, nodes, jnp.asarray(tokens[:, n : n + 1]))
        for row in range(40):
            text, before = (b"".join(SPELLINGS[i] for i in tokens[row, :m]) for m in (n + 1, n))
            if is_stripped:
                text, before = text.lstrip(), before.lstrip()
            # Strings that the last token is a part of.
            expected = any(text.find(s, max(len(before) - len(s) + 1, 0)) >= 0 for s in written)
            assert bool(completed[row, 0]) == expected, (text, before)
            seen += expected
    assert 0 < seen < 1000


def test_tables_are_of_few_sizes():
    sizes = [Stops.of("ab" * n, SPELLINGS, False).after.shape[0] for n in (1, 2, 3, 5, 7, 40)]
    assert sizes == [4, 8, 8, 16, 16, 128]


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        ("", "stop_strings must be texts of at least one character, not ''"),
        (["a", 5], "at least one character, not 5"),
        ("ab" * 300, "stop_strings have 600 bytes together, more than 512; shorten them"),
    ],
)
def test_what_is_no_string_is_refused(strings, message):
    with pytest.raises(ValueError, match=message):
        Stops.of(strings, SPELLINGS, False)


@pytest.fixture(scope="module")
def model(trained):
    config, params = trained("post_norm")
    return Generator(BART(config)), params


@pytest.fixture(scope="module")
def sources(golden):
    rows = golden("generation/cases.json")["models"]["post_norm"]["sources"]
    return [np.array(row) for row in rows if 8 < len(row) <= 16][:4]


LETTERS = [b"", b"", b"", *(bytes([97 + i % 7, 97 + i % 5]) for i in range(45))]
STOPS = Stops.of(["ab", "cd", "dda"], LETTERS, False)


def holds(ids):
    text = b"".join(LETTERS[i] for i in ids)
    return any(s in text for s in (b"ab", b"cd", b"dda"))


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 1},
        {"beam": 4},
        {"beam": 3, "sampling": True, "temperature": 2.0},
        {"beam": 1, "penalty_alpha": 0.6, "sampling_topk": 3},
    ],
    ids=str,
)
def test_hypotheses_end_where_their_text_holds_a_string(model, sources, options):
    generator, params = model
    options = GenerationOptions(max_len_b=14, min_len=6, **options)
    found = generator.generate(params, sources, options, stops=STOPS)
    plain = generator.generate(params, sources, options)
    ends = []
    for hypotheses, without in zip(found, plain, strict=True):
        for h in hypotheses:
            ids = h["tokens"].tolist()
            assert not holds(ids[:-1]) and holds(ids) == (ids[-1] != EOS)
            assert len(h["positional_scores"]) == len(ids)
            ends.append(ids[-1])
            if options.beam == 1:  # as without, up to there
                assert ids == without[0]["tokens"][: len(ids)].tolist()
    assert any(end != EOS for end in ends)


def test_a_stream_stops_there_too(model, sources):
    generator, params = model
    options = GenerationOptions(beam=1, max_len_b=14)
    for source in sources[:2]:
        ((expected,),) = generator.generate(params, [source], options, stops=STOPS)
        found = list(generator.stream(params, source, options, stops=STOPS))
        assert found == expected["tokens"].tolist()


def test_what_is_forced_stops_nothing(model, sources):
    generator, params = model
    stopping = [i for i in range(3, 48) if holds([i])]
    options = GenerationOptions(beam=2, max_len_b=14, min_len=4)
    prefixes = [[0, stopping[0], stopping[1]]] * 4
    found = generator.generate(params, sources, options, prefix_tokens=prefixes, stops=STOPS)
    for hypotheses in found:
        assert all(h["tokens"][:3].tolist() == prefixes[0] for h in hypotheses)
        assert all(len(h["tokens"]) > 3 for h in hypotheses)


def test_a_hypothesis_cannot_end_and_go_on(model, sources):
    generator, params = model
    options = GenerationOptions(beam=3)
    with pytest.raises(ValueError, match="stop_strings and constraints exclude each other"):
        generator.generate(params, sources[:1], options, stops=STOPS, constraints=[[[5]]])
    options = dataclasses.replace(options, match_source_len=True)
    with pytest.raises(ValueError, match="stop_strings and match_source_len exclude each other"):
        generator.generate(params, sources[:1], options, stops=STOPS)
