import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bart_hk.text import TextEncoder, train_bpe, train_characters, train_sentencepiece

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


# --- SentencePiece --------------------------------------------------------------------------------

INPUTS = Path(__file__).parent.parent / "goldens" / "inputs"
SENTENCES = (INPUTS / "sentences.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def pieces() -> TextEncoder:
    return train_sentencepiece(SENTENCES, 600)


def test_pieces_have_fairseq_ids_bytes_and_a_last_mask(pieces, tmp_path):
    d = pieces.dictionary
    assert (
        d.symbols[:5] == ["<s>", "<pad>", "</s>", "<unk>", "<0x00>"] and d.symbols[259] == "<0xFF>"
    )
    assert 261 < len(d) <= 600 and pieces.mask_id == len(d) - 1
    assert len(pieces.encode("the one and the other")) < 10  # pieces were learnt
    again = train_sentencepiece(iter(SENTENCES), 600)
    assert again.dictionary.symbols == d.symbols and again.bpe.model == pieces.bpe.model
    pieces.save(tmp_path)
    assert (tmp_path / "dict.txt").exists()
    opened = TextEncoder.load(tmp_path)
    assert opened.dictionary == d and opened.encode("the hat") == pieces.encode("the hat")


@given(st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"))))
def test_no_character_is_unknown(pieces, text):
    ids = pieces.encode(text)
    assert pieces.dictionary.unk() not in ids
    # SentencePiece normalises before it cuts.
    plain = unicodedata.normalize("NFKC", pieces.decode(ids))
    assert plain.replace(" ", "") == unicodedata.normalize("NFKC", text).replace(" ", "")


def test_bytes_that_spell_nothing(pieces):
    half = [pieces.dictionary.index(s) for s in ("<0xC3>", "\u2581", "t")]
    assert pieces.decode(half) == "\ufffd t"
    whole = [pieces.dictionary.index(s) for s in ("<0xC3>", "<0xA9>")]
    assert pieces.decode(whole) == "é"


def test_without_bytes_a_character_can_be_unknown():
    encoder = train_sentencepiece(SENTENCES, 300, byte_fallback=False)
    assert encoder.encode("é")[-1] == encoder.dictionary.unk()


def test_no_room_for_pieces():
    with pytest.raises(ValueError, match="vocab_size 261 is too small: more than 261 are needed"):
        train_sentencepiece(SENTENCES, 261)
    with pytest.raises(
        ValueError, match="no SentencePiece model of 8 symbols: Vocabulary size is s"
    ):
        train_sentencepiece(SENTENCES, 8, byte_fallback=False)
    with pytest.raises(ValueError, match="no SentencePiece model of 300 symbols: there is no text"):
        train_sentencepiece([], 300)


def test_characters_are_symbols(tmp_path):
    encoder = train_characters(["to be,", "or not\nto é"])
    symbols = encoder.dictionary.symbols
    assert symbols == ["<s>", "<pad>", "</s>", "<unk>", *"\n ,benort\u00e9", "<mask>"]
    assert encoder.mask_id == len(symbols) - 1
    encoder.save(tmp_path)
    for one in (encoder, TextEncoder.load(tmp_path)):
        text = " not\n to, beé "
        ids = one.encode(text)
        assert [symbols[i] for i in ids] == list(text)
        assert one.decode([0, *ids, 2, 1]) == text
        # What is not there, and special symbols that are written, are no more than characters.
        unknown = one.encode("o!<s>")
        assert [symbols[i] for i in unknown] == ["o", *["<unk>"] * 4]
        assert one.encode("") == []


def test_characters_need_a_text():
    with pytest.raises(ValueError, match="there is no text to take characters from"):
        train_characters(["", ""])
