"""Pieces of a text: whole characters, nothing taken back, and all of it."""

import numpy as np
import pytest

from bart_hk.hub.streaming import text_pieces
from bart_hk.text import TextEncoder


@pytest.fixture(scope="module")
def text():
    return TextEncoder.gpt2()


def test_a_piece_is_never_half_a_character(text):
    """Every emoji and every one of these letters takes several byte-level tokens."""
    sentence = "a 𓂀 b 🤷🏽‍♀️ ẓ̌ 𝔘𝔫𝔦 end"
    ids = text.encode(sentence)
    decoded = [text.decode(ids[:n]) for n in range(len(ids) + 1)]
    assert sum("\ufffd" in so_far for so_far in decoded) > 8  # the naive way shows these
    pieces = list(text_pieces(ids, text.decode))
    assert "".join(pieces) == sentence
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 10


def test_random_ids_and_broken_bytes_are_given_as_they_decode(text):
    rng = np.random.default_rng(0)
    for _ in range(50):
        ids = [int(i) for i in rng.integers(4, 260, 30)]  # single bytes, most of them alone
        pieces = list(text_pieces(ids, text.decode))
        assert "".join(pieces) == text.decode(ids)


def test_a_character_that_never_ends_is_given_at_the_end(text):
    ids = text.encode("ok 🤷")[:-1]
    assert text.decode(ids) == "ok \ufffd"
    assert list(text_pieces(ids, text.decode))[-1].endswith("\ufffd")


def test_pieces_come_with_the_token_that_settles_them(text):
    ids = iter(text.encode("one two three"))
    pieces = text_pieces(ids, text.decode)
    assert next(pieces) == "one"
    assert next(pieces) == " two"
    assert len(list(ids)) == 1  # nobody looked ahead


def test_words_that_may_still_change_are_held_back():
    """A decoder that joins word pieces, and mends spaces before punctuation."""

    def decode(ids):
        words = " ".join({1: "do", 2: "n", 3: "'", 4: "t", 5: "it", 6: "."}[i] for i in ids)
        return words.replace(" n ' t", "n't").replace(" .", ".")

    ids = [1, 2, 3, 4, 5, 6, 1, 5]
    pieces = list(text_pieces(ids, decode, held_words=3))
    assert "".join(pieces) == decode(ids) == "don't it. do it"
    assert len(pieces) > 1
    assert "".join(text_pieces(ids, decode)) != decode(ids)


def test_nothing_in_nothing_out(text):
    assert list(text_pieces([], text.decode)) == []
    assert list(text_pieces([0, 2], text.decode)) == []
