"""Several corpora as one, and shards."""

import collections
from pathlib import Path

import numpy as np
import pytest

from bart_hk.data.blocks import TokenBlocks
from bart_hk.data.corpora import Corpora, smoothed_weights
from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore, write_store


def blocks(folder: Path, name: str, count: int, first: int) -> TokenBlocks:
    """`count` rows: [first], [first + 1] * 2, ..."""
    sizes = np.arange(1, count + 1)
    write_store(folder / name, np.repeat(np.arange(first, first + count), sizes), sizes, 5000)
    return TokenBlocks(TokenStore(folder / name), 1000, "eos", strip=None)


@pytest.fixture
def parts(tmp_path) -> dict[str, TokenBlocks]:
    return {"a": blocks(tmp_path, "a", 10, 100), "b": blocks(tmp_path, "b", 40, 1000)}


def test_without_weights_every_row_is_seen_once(parts):
    corpora = Corpora(parts)
    assert len(corpora) == 50
    assert corpora.rows(1, 1).tolist() == list(range(50))
    assert corpora.sizes.tolist() == [*range(1, 11), *range(1, 41)]


def test_rows_of_all_corpora_in_any_order(parts):
    corpora = Corpora(parts)
    rows = np.random.default_rng(0).permutation(50)
    tokens, lengths = corpora.take(rows, bos=0, eos=2)
    for row, found in zip(rows, np.split(tokens, np.cumsum(lengths)[:-1]), strict=True):
        token, size = (100 + row, row + 1) if row < 10 else (1000 + row - 10, row - 9)
        assert found.tolist() == [0, *[token] * size, 2]
    tokens, lengths = corpora.take(rows, bos=0, eos={"a": 7, "b": 8})
    last = tokens[np.cumsum(lengths) - 1]
    assert np.array_equal(last, np.where(rows < 10, 7, 8))
    assert corpora.where(3).endswith("/a, block 3") and corpora.where(62).endswith("/b, block 2")


def test_weights_say_how_often(parts):
    corpora = Corpora(parts, {"a": 2.3, "b": 0.5})
    rows = corpora.rows(1, 1)
    seen = collections.Counter((rows % 50).tolist())
    assert len(np.unique(rows)) == len(rows) == 23 + 20  # each time has a number of its own
    assert sorted(seen[i] for i in range(10)) == [2] * 7 + [3] * 3
    assert sum(seen[i] for i in range(10, 50)) == 20 == len([i for i in seen if i >= 10])
    assert np.array_equal(corpora.rows(1, 1), rows)
    others = [corpora.rows(1, 2), corpora.rows(2, 1)]
    assert all(not np.array_equal(rows, other) and len(other) == 43 for other in others)
    # Over the epochs nothing is left out.
    ever = np.concatenate([corpora.rows(1, epoch) % 50 for epoch in range(30)])
    assert len(np.unique(ever)) == 50
    assert np.array_equal(corpora.lengths(rows), corpora.sizes[rows % 50])
    assert np.array_equal(corpora.take(rows[-1:])[0], corpora.take(rows[-1:] % 50)[0])


def test_smoothing_is_fairseqs():
    """multilingual_denoising.py: p^alpha, normalised, times the total over the size."""
    sizes = {"en": 9000, "de": 900, "gu": 100}
    share = np.array([0.9, 0.09, 0.01]) ** 0.7
    expected = share / share.sum() * 10_000 / np.array([9000, 900, 100])
    found = smoothed_weights(sizes, 0.7)
    np.testing.assert_allclose([found[name] for name in sizes], expected)
    assert sum(found[name] * size for name, size in sizes.items()) == pytest.approx(10_000)
    assert smoothed_weights(sizes, 1.0) == pytest.approx(dict.fromkeys(sizes, 1.0))


def test_what_is_wrong_with_weights(parts):
    with pytest.raises(DataError, match="there is no corpus 'c' to weigh, only a, b"):
        Corpora(parts, {"c": 1})
    with pytest.raises(DataError, match="the weight of a, -1, must be at least 0"):
        Corpora(parts, {"a": -1})
    with pytest.raises(DataError, match="the weights of the corpora leave no row"):
        Corpora(parts, {"a": 0, "b": 0})
    with pytest.raises(DataError, match="multilang_sampling_alpha=-1 must be at least 0"):
        smoothed_weights({"a": 1}, -1)
    with pytest.raises(DataError, match="the corpus a is empty"):
        smoothed_weights({"a": 0}, 1)
