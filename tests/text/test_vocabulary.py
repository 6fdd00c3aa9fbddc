import pytest
from hypothesis import given
from hypothesis import strategies as st

from bart_hk.text import train_bpe

TEXTS = ["the cat sat on the mat", "the hat on the cat's mat"] * 5


def test_specials_first_bytes_next_mask_last():
    encoder = train_bpe(TEXTS, 270)
    d = encoder.dictionary
    assert len(d) == 270
    assert d.symbols[:4] == ["<s>", "<pad>", "</s>", "<unk>"] and d.symbols[-1] == "<mask>"
    assert (d.bos(), d.pad(), d.eos(), d.unk(), encoder.mask_id) == (0, 1, 2, 3, 269)
    assert len(encoder.encode("the")) < 3  # merges were learnt
    assert train_bpe(iter(TEXTS), 270).dictionary.symbols == d.symbols


def test_little_variety_gives_fewer_symbols():
    encoder = train_bpe(["aa"], 1000)
    assert len(encoder.dictionary) == 262 and encoder.encode("aa") == [260]


def test_no_room():
    with pytest.raises(ValueError, match="vocab_size 260 is too small: at least 261 are needed"):
        train_bpe(TEXTS, 260)
    assert train_bpe([], 261).encode("a") == [4 + ord("a") - ord("!")]


@pytest.fixture(scope="module")
def encoder():
    return train_bpe(TEXTS, 300)


@given(st.text(st.characters(codec="utf-8")))
def test_any_text_comes_back(encoder, text):
    ids = encoder.encode(text)
    assert encoder.decode([0, *ids, 2]) == text
    assert all(4 <= i < len(encoder.dictionary) - 1 for i in ids)
