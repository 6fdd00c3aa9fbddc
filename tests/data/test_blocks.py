"""Blocks: fairseq's (golden), without its defect."""

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bart_hk.data.blocks import TokenBlocks, block_slices
from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore, write_store

EOS = 2


def store(folder: Path, lines: list[list[int]], eos: bool = True) -> TokenStore:
    items = [[*line, EOS] if eos else line for line in lines]
    tokens = np.array([token for item in items for token in item], np.int64)
    write_store(folder / "train", tokens, np.array([len(i) for i in items], np.int64), 1000)
    return TokenStore(folder / "train")


def blocks_of(made: TokenBlocks) -> list[list[int]]:
    return [made[block].tolist() for block in range(len(made))]


def test_slices_are_those_of_fairseq(golden):
    cases = golden("stores/stores.json")["blocks"]
    for case in cases:
        found = block_slices(
            np.array(case["sizes"]),
            case["break_mode"],
            case["block_size"],
            case["document_sep_len"],
        )
        assert found.tolist() == case["slices"], case
    assert len(cases) == 60 and {case["break_mode"] for case in cases} == {
        "none",
        "complete",
        "complete_doc",
        "eos",
    }


@given(st.lists(st.integers(0, 12), max_size=30), st.integers(1, 15), st.sampled_from((0, 1)))
def test_slices_follow_the_rule_told_sentence_by_sentence(sizes, block_size, separator):
    """fairseq's loop, as its documentation tells it."""
    for mode in ("complete", "complete_doc"):
        blocks, begin, filled = [], 0, 0
        for size in sizes:
            ends_document = mode == "complete_doc" and size == separator
            if ends_document or (filled and filled + size > block_size):
                blocks.append((begin, begin + filled))
                begin, filled = begin + filled, 0
            if ends_document:
                begin += size
            else:
                filled += size
        blocks.append((begin, begin + filled))
        least = 2 if mode == "complete_doc" else 1
        expected = [list(b) for b in blocks if b[1] - b[0] >= least]
        found = block_slices(np.array(sizes, np.int64), mode, block_size, separator)
        assert found.tolist() == expected


def test_blocks_of_a_store_with_eos_are_those_of_one_without(golden, tmp_path):
    """B5: fairseq counts the </s> that it removes; documents merge and tokens come twice."""
    recorded = golden("stores/stores.json")
    lines = recorded["lines"]
    for eos in (True, False):
        made = store(tmp_path, lines, eos)
        for mode, expected in recorded["denoising without eos"].items():
            blocks = blocks_of(TokenBlocks(made, 4, mode, strip=EOS, oversized="keep"))
            assert (blocks == expected) == (mode != "none"), mode
    made = store(tmp_path, [line for line in lines if line])
    for mode, expected in recorded["denoising without eos and empty lines"].items():
        assert blocks_of(TokenBlocks(made, 4, mode, strip=EOS)) == expected
    wrong = recorded["denoising"]
    assert wrong["none"][-2:] == [[15, 16, 17], [17]]  # a token twice
    assert all(wrong[mode] != recorded["denoising without eos"][mode] for mode in wrong)


def test_none_loses_no_token_beside_empty_lines(golden, tmp_path):
    """fairseq loses one."""
    recorded = golden("stores/stores.json")
    tokens = [token for line in recorded["lines"] for token in line]
    made = TokenBlocks(store(tmp_path, recorded["lines"]), 4, "none", strip=EOS)
    assert [token for block in blocks_of(made) for token in block] == tokens
    theirs = [t for block in recorded["denoising without eos"]["none"] for t in block]
    assert set(tokens) - set(theirs) == {16}


def test_documents_stay_apart(tmp_path):
    lines = [[5, 6], [7, 8], [], [9, 10], [], [], [11, 12]]
    made = store(tmp_path, lines)
    assert blocks_of(TokenBlocks(made, 10, "complete_doc", strip=EOS)) == [
        [5, 6, 7, 8],
        [9, 10],
        [11, 12],
    ]
    assert blocks_of(TokenBlocks(made, 10, "complete", strip=EOS)) == [[5, 6, 7, 8, 9, 10, 11, 12]]
    assert blocks_of(TokenBlocks(made, 10, "eos", strip=EOS)) == [[5, 6], [7, 8], [9, 10], [11, 12]]


def test_sentences_keep_their_eos_where_asked(tmp_path):
    """As mBART's pretraining: an empty line is one </s>."""
    made = store(tmp_path, [[5, 6], [7], [], [8, 9]])
    blocks = TokenBlocks(made, 10, "complete_doc", strip=None, document_sep_len=1)
    assert blocks_of(blocks) == [[5, 6, 2, 7, 2], [8, 9, 2]]


def test_eos_is_stripped_from_both_ends_and_again(tmp_path):
    made = store(tmp_path, [[2, 2, 5, 2, 6, 2], [2], [2, 7]])
    assert blocks_of(TokenBlocks(made, 10, "none", strip=EOS)) == [[5, 2, 6, 7]]


def test_a_long_sentence_is_split_kept_or_refused(tmp_path):
    made = store(tmp_path, [[5], list(range(10, 21)), [6], [7]])
    split = TokenBlocks(made, 4, "complete", strip=EOS)
    assert blocks_of(split) == [
        [5],
        [10, 11, 12, 13],
        [14, 15, 16, 17],
        [18, 19, 20, 6],
        [7],
    ]
    kept = TokenBlocks(made, 4, "complete", strip=EOS, oversized="keep")
    assert kept.sizes.tolist() == [1, 11, 2]
    with pytest.raises(DataError, match="train.bin: sentence 1 has 11 tokens, and a block 4; take"):
        TokenBlocks(made, 4, "complete", strip=EOS, oversized="error")
    assert len(TokenBlocks(made, 11, "complete", strip=EOS, oversized="error")) == 3


def test_many_blocks_at_once_and_framed(tmp_path):
    rng = np.random.default_rng(0)
    lines = [rng.integers(4, 1000, n).tolist() for n in rng.integers(0, 30, 200)]
    made = TokenBlocks(store(tmp_path, lines), 25, "complete_doc", strip=EOS)
    order = rng.permutation(len(made))
    tokens, lengths = made.take(order, bos=0, eos=2)
    rows = np.split(tokens, np.cumsum(lengths)[:-1])
    for block, row in zip(order, rows, strict=True):
        assert row.tolist() == [0, *made[block].tolist(), 2]
    assert np.array_equal(lengths, made.sizes[order] + 2)


def test_what_is_left_out_is_said(tmp_path, caplog):
    made = store(tmp_path, [[5], [], [6, 7], [], [8], []])
    with caplog.at_level(logging.INFO):
        assert blocks_of(TokenBlocks(made, 10, "complete_doc", strip=EOS)) == [[6, 7]]
    assert "2 tokens in documents of one token are left out" in caplog.text


def test_nothing_to_learn(tmp_path):
    for lines in ([], [[]], [[], [], []]):
        with pytest.raises(DataError, match=f"has no text: {len(lines)} sentences, all empty"):
            TokenBlocks(store(tmp_path, lines), 10, strip=EOS)
    with pytest.raises(DataError, match="no document of more than one token; there is nothing to"):
        TokenBlocks(store(tmp_path, [[5], [], [6]]), 10, "complete_doc", strip=EOS)
    assert len(TokenBlocks(store(tmp_path, [[5], [], [6]]), 10, "complete", strip=EOS)) == 1


def test_options_that_there_are_not(tmp_path):
    made = store(tmp_path, [[5, 6]])
    with pytest.raises(
        ValueError, match="sample_break_mode='doc' is not one of none, complete, co"
    ):
        TokenBlocks(made, 4, "doc", strip=EOS)
    with pytest.raises(ValueError, match="oversized='drop' is not one of split, keep, error"):
        TokenBlocks(made, 4, strip=EOS, oversized="drop")
    with pytest.raises(ValueError, match="a block of 0 tokens holds nothing"):
        TokenBlocks(made, 0, "none", strip=EOS)
