"""Alignments from attention, against fairseq's words for them."""

import numpy as np
import pytest

from bart_hk.generation import alignment

PAD, EOS = 1, 2


def test_hard_alignment_names_the_source_token_of_each_target_token():
    source, target = np.array([0, 7, 8, 9, EOS]), np.array([0, 5, 6, EOS])
    attention = np.array(
        [
            [0.7, 0.1, 0.1, 0.2],
            [0.1, 0.1, 0.6, 0.2],
            [0.1, 0.2, 0.1, 0.2],
            [0.0, 0.3, 0.1, 0.2],
            [0.1, 0.3, 0.1, 0.2],  # </s>, though it weighs as much as another
        ],
        np.float32,
    )
    assert alignment.hard(attention, source, target, pad=PAD, eos=EOS) == [(0, 0), (3, 1), (1, 2)]


def test_positions_count_neither_eos_nor_padding():
    """A pair of sentences has a </s> within; fairseq counts words, and that is none."""
    source, target = np.array([0, 7, EOS, 9, EOS, PAD]), np.array([5, EOS, 6, EOS])
    attention = np.zeros((6, 4), np.float32)
    attention[3, 0] = attention[0, 2] = 1.0
    attention[2, 0] = attention[5, 0] = 2.0
    assert alignment.hard(attention, source, target, pad=PAD, eos=EOS) == [(2, 0), (0, 1)]


def test_of_equal_weights_the_first_counts():
    source, target = np.array([EOS, 7, 8, 9]), np.array([5])
    found = alignment.hard(np.full((4, 1), 0.25), source, target, pad=PAD, eos=EOS)
    assert found == [(0, 0)]


def test_where_there_is_nothing_to_align():
    row, empty = np.array([0, 7, EOS]), np.array([EOS])
    assert alignment.hard(np.ones((1, 3)), empty, row, pad=PAD, eos=EOS) == []
    assert alignment.hard(np.ones((3, 1)), row, empty, pad=PAD, eos=EOS) == []


def test_soft_alignment_is_the_attention_of_each_target_token():
    source, target = np.array([0, 7, 8, EOS, PAD]), np.array([5, 6, EOS])
    attention = np.random.default_rng(0).random((5, 3)).astype(np.float64)
    found = alignment.soft(attention, source, target, pad=PAD)
    assert found.shape == (3, 4) and found.dtype == np.float32
    np.testing.assert_allclose(found, attention[:4].T, rtol=1e-6)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_attention_of_other_tokens_is_refused(kind):
    more = {"eos": EOS} if kind == "hard" else {}
    with pytest.raises(ValueError, match=r"attention of shape \(0,\) is not of a source of 2 "):
        getattr(alignment, kind)(np.empty(0), np.array([0, 2]), np.array([5]), pad=PAD, **more)


def test_unknown_words_are_replaced_by_what_they_are_aligned_with():
    target, source = ["<s>", "<unk>", "sat", "<unk>"], ["<s>", "Das", "Wort", "Zzyzx"]
    pairs = [(0, 0), (3, 1), (2, 2), (1, 3)]
    copied = alignment.replace_unk(target, source, pairs, unk="<unk>")
    assert copied == ["<s>", "Zzyzx", "sat", "Das"]
    words = {"Das": "the"}
    translated = alignment.replace_unk(
        target, source, pairs, unk="<unk>", translate=lambda word: words.get(word, word)
    )
    assert translated == ["<s>", "Zzyzx", "sat", "the"]
    assert target[1] == "<unk>"  # the argument is as it was
    assert alignment.replace_unk(target, source, [], unk="<unk>") == target


def test_a_dictionary_is_read_line_by_line(tmp_path):
    path = tmp_path / "words"
    path.write_text("Das the 0.9\n\nHund\tdog\nHund hound\n", encoding="utf-8")
    assert alignment.read_dictionary(path) == {"Das": "the", "Hund": "hound"}
    path.write_text("Das the\nHund\n", encoding="utf-8")
    with pytest.raises(ValueError, match="words, line 2: 'Hund' stands alone"):
        alignment.read_dictionary(path)
    path.write_bytes(b"Das \xff\n")
    with pytest.raises(ValueError, match="words, line 1: not UTF-8"):
        alignment.read_dictionary(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        alignment.read_dictionary(tmp_path / "nowhere")
