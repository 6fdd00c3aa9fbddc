"""The shipped GPT-2 BPE against what the real fairseq gave (tools/goldens/text.py)."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from bart_hk.text import GPT2BPE, Dictionary, TextEncoder, gpt2_bpe
from bart_hk.text.gpt2_bpe import BYTE_ALPHABET, gpt2_merges, gpt2_symbols, read_merges


@pytest.fixture(scope="module")
def large() -> TextEncoder:
    return TextEncoder.gpt2("bart.large")


@pytest.fixture(scope="module")
def base() -> TextEncoder:
    return TextEncoder.gpt2("bart.base")


@pytest.fixture(scope="module")
def recorded(golden):
    return golden("text/text.json")


def test_ids_are_fairseqs(large, base, recorded):
    texts = [text for text, *_ in recorded["encoded"]]
    ids = [ids for _, ids, *_ in recorded["encoded"]]
    assert len(texts) > 300 and "" in texts
    assert large.encode_batch(texts) == ids
    assert base.encode_batch(texts) == ids
    assert [large.encode(text) for text in texts] == ids


def test_texts_come_back_where_fairseqs_do(large, recorded):
    for text, ids, *changed in recorded["encoded"]:
        assert large.decode(ids) == (changed[0] if changed else text)


def test_any_ids_decode_to_fairseqs_text(large, recorded):
    assert len(recorded["decoded"]) == 100
    for ids, text in recorded["decoded"]:
        assert large.decode(ids) == text
    joined = "".join(text for _, text in recorded["decoded"])
    assert "<mask>" in joined and "<unk>" in joined and "\ufffd" in joined


def test_a_text_is_what_its_ids_add_to_it(large, recorded):
    spellings = large.spellings()
    assert len(spellings) == len(large.dictionary)
    for ids, text in recorded["decoded"]:
        inside = [i if i < len(spellings) else large.dictionary.unk_index for i in ids]
        assert b"".join(spellings[i] for i in inside).decode(errors="replace") == text


def test_every_kind_of_character_is_cut_as_fairseq_cuts_it(large, recorded):
    points = [*range(0xD800), *range(0xE000, 0x10000), *range(0x10000, 0x110000, 64)]
    rows = large.encode_batch([f"{chr(point)} {chr(point)}1" for point in points])
    ids = np.array([i for row in rows for i in row], "<i4")
    assert len(ids) == recorded["code_points"]["count"]
    assert hashlib.sha256(ids.tobytes()).hexdigest() == recorded["code_points"]["sha256"]


def test_the_examples_of_fairseqs_documentation(large):
    assert large.encode("Hello world") == [31414, 232]
    assert large.encode(" world") == [232]
    assert large.encode("world") == [8331]
    assert large.encode("Hello world!") == [31414, 232, 328]
    assert large.bpe.encode("Hello world") == "15496 995"
    assert large.bpe.decode("15496 995") == "Hello world"
    assert large.bpe.is_beginning_of_word("995") and not large.bpe.is_beginning_of_word("15496")


def test_layouts_differ_in_fillers_and_mask_alone(large, base):
    assert (len(large.dictionary), large.mask_id) == (50265, 50264)
    assert (len(base.dictionary), base.mask_id) == (51201, 51200)
    assert base.dictionary.symbols[:50264] == large.dictionary.symbols[:50264]
    fillers = base.dictionary.symbols[50264:51200]
    assert fillers == [f"madeupword{number:04d}" for number in range(3, 939)]
    with pytest.raises(ValueError, match=r"layout 'bart.huge' is not one of bart.large, bart.base"):
        TextEncoder.gpt2("bart.huge")


def test_gpt2s_ids_follow_from_its_merges():
    symbols = gpt2_symbols()
    assert len(symbols) == 50257
    assert (symbols["!"], symbols["\u0120"], symbols["\u0120the"]) == ("0", "220", "262")
    assert symbols["<|endoftext|>"] == "50256"


def test_special_symbols_in_a_text_are_ordinary_characters(large):
    text = "<s> <mask></s><pad> <unk>"
    ids = large.encode(text)
    assert not {0, 1, 2, 3, 50264} & set(ids)
    assert large.decode(ids) == text


def test_decode_leaves_out_padding_and_keeps_the_rest(large, base):
    assert large.decode([0, 31414, 2, 1, 1]) == "Hello"
    assert large.decode([31414, 50264, 3, 99999, -1]) == "Hello<mask><unk><unk><unk>"
    assert base.decode([31414, 50264, 51200]) == "Hellomadeupword0003<mask>"
    assert large.decode([]) == large.decode([0, 2]) == ""
    assert large.decode(np.array([31414, 232], np.int32)) == "Hello world"


def test_encoding_never_changes_the_dictionary(large):
    before = len(large.dictionary)
    large.encode("\u2603 unheard-of zxqv \x00")
    assert len(large.dictionary) == before


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=4))
def test_any_text_comes_back(large, texts):
    rows = large.encode_batch(texts)
    assert rows == [large.encode(text) for text in texts]
    assert [large.decode(row) for row in rows] == texts
    assert [large.bpe.decode(large.bpe.encode(text)) for text in texts] == texts


def test_what_is_no_text_is_named(large):
    with pytest.raises(TypeError, match="text 1 is a int, not a str: 5"):
        large.encode_batch(["a", 5])
    with pytest.raises(TypeError, match="takes a list of texts"):
        large.encode_batch("a")
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at 1"):
        large.encode("a\ud800")
    assert large.encode_batch([]) == []
    with pytest.raises(ValueError, match=r"the ids of one text, not an array of \(1, 2\)"):
        large.decode([[0, 2]])


def test_a_dictionary_that_lacks_symbols_gives_unk(large):
    dictionary = Dictionary()
    dictionary.add_symbol("995")  # " world"
    encoder = TextEncoder(large.bpe, dictionary)
    assert encoder.encode("Hello world") == [3, 4]
    assert encoder.decode([3, 4]) == "<unk> world"
    assert encoder.mask_id is None


def test_bytes_outside_a_small_vocabulary_become_unk():
    bpe = GPT2BPE({"a": "a", "b": "b", "ab": "ab"}, [("a", "b")])
    assert bpe.encode("ab ba\u00e9") == "ab <unk> b a <unk> <unk>"
    encoder = TextEncoder(bpe, Dictionary.from_symbols(["<pad>", "<unk>", "a", "b", "ab"]))
    assert encoder.encode("ab!") == [4, 1]
    without_unk = TextEncoder(bpe, Dictionary.from_symbols(["a", "b", "ab"]))
    assert without_unk.encode("ab") == [2]
    with pytest.raises(ValueError, match="outside the vocabulary, which has no '<unk>'"):
        without_unk.encode("ab!")


def test_prefix_space():
    tokens = {character: character for character in BYTE_ALPHABET.values()}
    bpe = GPT2BPE(tokens, [], add_prefix_space=True)
    assert bpe.encode("ab") == "\u0120 a b" and bpe.encode(" ab") == "\u0120 a b"


@pytest.fixture(scope="module", params=[False, True], ids=["", "prefix"])
def both(request) -> tuple[GPT2BPE, Tokenizer]:
    """Ours, and the library's tokenizer alone, which splits texts itself."""
    symbols, merges = gpt2_symbols(), list(gpt2_merges())
    vocabulary = {token: index for index, token in enumerate(symbols)}
    library = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=request.param)
    return GPT2BPE(symbols, merges, add_prefix_space=request.param), library


def alone(library: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in library.encode_batch(texts)]


def test_words_that_are_cut_here_are_the_librarys(both):
    bpe, library = both
    points = [chr(point) for point in (*range(0x3000), 0x3000, 0xFEFF, 0x1F44D)]
    texts = [f"{c}a1.{c} {c}{c}b'{c}s  {c}\t{c}1" for c in points] + [f" {c}" for c in points]
    assert bpe.indices(texts) == alone(library, texts)
    assert bpe.indices(points) == alone(library, points)
    assert bpe.indices(["", "a", ""]) == alone(library, ["", "a", ""]) and bpe.indices([]) == []


_CLOSE = st.text(st.sampled_from("ab'stlé½\u0301 \t\n\r\x1c\x85\xa0\u2003\u2019\u2014.!12\u0661中"))


@settings(max_examples=300, deadline=None)
@given(st.lists(_CLOSE, max_size=4))
def test_characters_beside_each_other_are_cut_as_by_the_library(both, texts):
    bpe, library = both
    assert bpe.indices(texts) == alone(library, texts)


def test_forgotten_words_are_encoded_again(both, monkeypatch):
    monkeypatch.setattr(gpt2_bpe, "_KNOWN_SIZE", 20)
    bpe, library = GPT2BPE(both[0].tokens, both[0].merges), both[1]
    library = Tokenizer.from_str(library.to_str())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = ["one two two three", "two", "a long line of words that are new", "two one"]
    for _ in range(2):
        for text in texts:
            assert bpe.indices([text, text]) == alone(library, [text, text])
            assert len(bpe._known) < 6


def test_merges_are_checked():
    assert read_merges("#version: 0.2\na b\nab c\n") == [("a", "b"), ("ab", "c")]
    assert read_merges("a b") == [("a", "b")]
    with pytest.raises(ValueError, match="merge 2, 'a b c', is not a pair"):
        read_merges("#version: 0.2\na b\na b c\n")
    with pytest.raises(ValueError, match="the merge 'a' 'b' needs 'ab', which is not in the voc"):
        GPT2BPE({"a": "a", "b": "b"}, [("a", "b")])
    with pytest.raises(ValueError, match="the merge 'a' 'b' needs 'b'"):
        GPT2BPE({"a": "a", "ab": "ab"}, [("a", "b")])


def test_texts_end_to_end(large):
    texts = ["Hello world", "", " a", "naïve 👍🏽"]
    ids, lengths = large.encode_flat(texts)
    assert (ids.dtype, lengths.dtype) == (np.int32, np.int64)
    assert lengths.tolist() == [len(row) for row in large.encode_batch(texts)] and lengths[1] == 0
    assert ids.tolist() == [i for row in large.encode_batch(texts) for i in row]
    assert [len(array) for array in large.encode_flat([])] == [0, 0]
    with pytest.raises(TypeError, match="takes a list of texts"):
        large.encode_flat("Hello")
