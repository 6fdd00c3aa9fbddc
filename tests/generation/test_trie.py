"""Tries against sets of sequences."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bart_hk.generation import trie as trie_module
from bart_hk.generation.trie import Trie, advance, mask_logits, start

EOS, START = 2, 9
sequence_lists = st.lists(
    st.lists(st.integers(0, 5).filter(lambda t: t != EOS), min_size=1, max_size=4),
    min_size=1,
    max_size=12,
)


def may_follow(sequences, prefix):
    """By going through all the sequences, </s> after each of them."""
    closed = [[*s, EOS] if s[-1] != EOS else list(s) for s in map(list, sequences)]
    n = len(prefix)
    return sorted({s[n] for s in closed if len(s) > n and s[:n] == list(prefix)})


@given(sequence_lists, st.lists(st.integers(0, 5), max_size=5), st.booleans())
def test_a_trie_allows_what_its_sequences_go_on_with(sequences, prefix, closed):
    given_as = [[*s, EOS] for s in sequences] if closed else sequences
    trie = Trie(given_as, eos=None if closed else EOS)
    for text in [prefix, *(s[:n] for s in sequences for n in range(len(s) + 1))]:
        assert trie(7, np.array([START, *text])) == may_follow(sequences, text)


@given(
    sequence_lists,
    st.lists(st.integers(0, 5), max_size=3),
    st.integers(0, 4),
    st.sets(st.integers(0, 5), max_size=2),
)
def test_the_shortest_output_is_that_of_the_sequences_that_are_allowed(
    sequences, prefix, least, never
):
    found = Trie(sequences).shortest_outputs([tuple(prefix)], least, never, EOS)
    closed = [s[:-1] if s[-1] == EOS else s for s in sequences]
    allowed = [
        s
        for s in closed
        if s[: len(prefix)] == prefix and len(s) >= least and not never & set(s[len(prefix) :])
    ]
    expected = min(map(len, allowed), default=None)
    if expected is None:
        assert found[tuple(prefix)] > max(map(len, sequences))
    else:
        assert found == {tuple(prefix): expected}


def test_without_eos_the_function_knows_only_the_eos_that_stands_there():
    trie = Trie([[4, 5], [4, 6, EOS]])
    assert trie(0, [START, 4]) == [5, 6]
    assert trie(0, [START, 4, 5]) == []
    assert trie(0, [START, 4, 6]) == [EOS]


@jax.jit
def masked(tables, nodes, logits):
    return mask_logits(tables, nodes, logits)


step = jax.jit(advance)


def allowed_on_device(tables, streams, vocabulary):
    """Of each of `streams` [B, W, T] the allowed ids after each number of tokens."""
    batch, beam, length = streams.shape
    nodes, seen = start(batch, beam), []
    logits = jnp.arange(vocabulary * batch * beam, dtype=jnp.float32).reshape(-1, batch, beam)
    for n in range(length + 1):
        found = np.asarray(masked(tables, nodes, logits))
        there = found > -np.inf
        np.testing.assert_array_equal(found[there], np.asarray(logits)[there])
        seen.append(there)
        if n < length:
            nodes = step(tables, nodes, jnp.asarray(streams[..., n], jnp.int32))
    return seen


@settings(deadline=None, max_examples=40)
@given(sequence_lists, st.integers(0, 99))
def test_the_device_allows_what_the_function_does(sequences, seed):
    rng = np.random.default_rng(seed)
    given_as = [[*s, EOS] if rng.random() < 0.5 else s for s in sequences]
    streams = rng.integers(0, 6, (2, 4, 5))
    for stream in streams.reshape(-1, 5)[1:]:  # most follow a sequence for a while
        followed = [*sequences[rng.integers(len(sequences))], EOS][: rng.integers(1, 6)]
        stream[: len(followed)] = followed
    seen = allowed_on_device(Trie(given_as).tables(37, EOS), streams, 37)
    for b, w in np.ndindex(2, 4):
        for n in range(6):
            expected = may_follow(sequences, streams[b, w, :n])
            assert np.flatnonzero(seen[n][:, b, w]).tolist() == expected


@pytest.mark.parametrize("mask_bytes", [trie_module._MASK_BYTES, 0])
def test_nodes_with_few_and_with_many_children(monkeypatch, mask_bytes):
    """Without room for masks, every node is one with few children."""
    monkeypatch.setattr(trie_module, "_MASK_BYTES", mask_bytes)
    rng = np.random.default_rng(1)
    vocabulary = 500
    sequences = {
        tuple(int(t) for t in (*begin, *rng.integers(3, vocabulary, rng.integers(0, 3))))
        for begin, count in (((), 300), ((7,), 31), ((8,), 32), ((9,), 33), ((9, 10), 400))
        for _ in range(count)
    } - {()}
    sequences |= {(11, t) for t in range(3, 35)}  # 32 children, and </s> as one more
    sequences |= {(11,)}
    trie = Trie(list(sequences), eos=EOS)
    tables = trie.tables(vocabulary, EOS)
    degree = np.diff(tables.first)
    assert degree[0] > 128 and (degree == 33).any()
    assert bool(mask_bytes) == bool(tables.many.any())
    prefixes = [s[:n] for s in sorted(sequences)[::20] for n in range(len(s) + 1)]
    prefixes += [(), (7,), (8,), (9,), (9, 10), (11,), (12, 1)]
    streams = np.ones((1, len(prefixes), 4), np.int64)
    for stream, prefix in zip(streams[0], prefixes, strict=True):
        stream[: len(prefix)] = prefix
    seen = allowed_on_device(tables, streams, vocabulary)
    for w, prefix in enumerate(prefixes):
        found = np.flatnonzero(seen[len(prefix)][:, 0, w]).tolist()
        assert found == trie(0, [START, *prefix]) == may_follow(sequences, prefix)


def test_a_great_trie_is_made_in_no_time():
    rng = np.random.default_rng(0)
    vocabulary = 50265
    sequences = [
        [0, int(head), *rest.tolist()]
        for head, rest in zip(
            rng.integers(4, 10_004, 100_000),
            np.split(rng.integers(4, vocabulary, 500_000), 100_000),
            strict=True,
        )
    ]
    begin = time.perf_counter()
    trie = Trie(sequences, eos=EOS)
    tables = trie.tables(vocabulary, EOS)
    seconds = time.perf_counter() - begin
    assert seconds < 10  # 0.4 s on one core; nested dictionaries take that at a tenth of the size
    assert len(trie(0, [START, 0])) > 9_900
    assert trie.tables(vocabulary, EOS) is tables
    assert trie(0, [START, *sequences[777]]) == [EOS]
    streams = np.array([[sequences[5], sequences[99_999], sequences[0]]])
    seen = allowed_on_device(tables, streams, vocabulary)
    for w, i in enumerate((5, 99_999, 0)):
        for n, there in enumerate(seen):
            expected = trie(0, [START, *sequences[i][:n]])
            assert np.flatnonzero(there[:, 0, w]).tolist() == expected


def test_other_tries_of_about_the_same_size_compile_nothing_again():
    program = jax.jit(mask_logits)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        sequences = rng.integers(3, 60, (40 + seed, 5))
        program(Trie(sequences).tables(64, EOS), start(1, 2), jnp.zeros((64, 1, 2)))
    assert program._cache_size() == 1


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "the trie has no sequences"),
        (np.zeros((0, 3), int), "the trie has no sequences"),
        ([[3], []], "sequence 1 of the trie is empty"),
        ([[3], [4.0]], "sequence 1 of the trie must be a list of integer ids, not float64"),
        ([[3], 4], r"sequence 1 of the trie must be a list of integer ids, .* shape \(\)"),
        (["ab"], "sequence 0 of the trie must be a list of integer ids"),
        ([[3, 4], [3], [5, -6], [7]], "sequence 2 of the trie holds -6, which is no id"),
        ([[1 << 40]], "sequence 0 of the trie holds 1099511627776, which is no id"),
    ],
)
def test_what_is_no_trie_is_refused_in_one_line(sequences, message):
    with pytest.raises(ValueError, match=message) as error:
        Trie(sequences)
    assert "\n" not in str(error.value)


def test_ids_that_a_model_does_not_have_are_refused():
    with pytest.raises(ValueError, match="holds the id 64, outside the vocabulary of 64"):
        Trie([[64], [3]]).tables(64, EOS)
    with pytest.raises(ValueError, match=r"go on after </s> \(2\)"):
        Trie([[3, EOS], [3, EOS, 4]]).tables(64, EOS)
