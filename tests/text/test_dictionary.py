import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bart_hk.text import Dictionary
from bart_hk.text.dictionary import token_ids

FILE = "the 20\nof 10\n\u3000x 3\nmadeupword0000 0\n"


def read(text: str) -> Dictionary:
    return Dictionary.load(io.StringIO(text))


def test_ids_follow_the_lines_after_four_special_symbols():
    d = read(FILE)
    assert d.symbols == ["<s>", "<pad>", "</s>", "<unk>", "the", "of", "\u3000x", "madeupword0000"]
    assert (d.bos(), d.pad(), d.eos(), d.unk(), d.nspecial, len(d)) == (0, 1, 2, 3, 4, 8)
    assert (d.bos_index, d.pad_index, d.eos_index, d.unk_index) == (0, 1, 2, 3)
    assert (d.index("of"), d["of" in d and 5], d.get_count(4)) == (5, "of", 20)


def test_unknown_symbols_and_ids():
    d = read(FILE)
    assert d.index("nowhere") == 3 and "nowhere" not in d
    assert d[8] == d[99] == d[-1] == "<unk>"


def test_encode_line_never_grows_the_dictionary():
    d = read(FILE)
    ids = d.encode_line("  the \t nowhere\u2003of ")
    assert ids.dtype == np.int32 and ids.tolist() == [4, 3, 5, 2]
    assert d.encode_line("<s> the </s>", append_eos=False).tolist() == [0, 4, 2]
    assert d.encode_line("").tolist() == [2]
    assert len(d) == 8


def test_string_leaves_out_bos_and_eos_only():
    d = read(FILE)
    assert d.string([0, 4, 1, 3, 99, 5, 2]) == "the <pad> <unk> <unk> of"
    assert d.string(np.array([0, 4, 2]), include_eos=True) == "the </s>"
    assert d.string([4, 5, 1], extra_symbols_to_ignore=[1], separator="") == "theof"
    assert d.string([3, 4], escape_unk=True) == "<<unk>> the"
    assert d.string([3, 4], unk_string="?") == "? the"
    assert d.string([[0, 4, 2], [0, 5, 2]]) == "the\nof"
    assert d.string([]) == ""


def test_save_writes_what_was_read(tmp_path):
    d = read(FILE)
    d.save(tmp_path / "dict.txt")
    assert (tmp_path / "dict.txt").read_bytes() == FILE.encode()
    again = Dictionary.load(str(tmp_path / "dict.txt"))
    assert again == d and again.count == d.count
    assert again != read("of 1\nthe 1\n")


def test_add_symbol():
    d = read(FILE)
    assert d.add_symbol("new", 7) == 8 and d.add_symbol("new", 2) == 8 and d.get_count(8) == 9
    assert d.add_symbol("new", 1, overwrite=True) == 9 and d.index("new") == 9
    assert d.without_last().index("new") == 3 and len(d) == 10


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_files_of_windows_and_without_a_last_newline(tmp_path, newline):
    (tmp_path / "dict.txt").write_bytes(f"the 20{newline}of 10".encode())
    assert Dictionary.load(tmp_path / "dict.txt").symbols[4:] == ["the", "of"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the 20\nof\n", r"line 2: 'of' is not '<symbol> <count>'"),
        ("the 20\nof ten\n", r"line 2: 'of ten' is not"),
        ("the 20\n\nof 10\n", r"line 2: '' is not"),
        ("the 20\nthe 10\n", r"line 2: the symbol 'the' is already in the dictionary"),
        ("<s> 1\n", r"line 1: the symbol '<s>' is already"),
    ],
)
def test_malformed_lines_are_named(text, message):
    with pytest.raises(ValueError, match=message):
        read(text)


def test_overwrite_flag_gives_a_symbol_a_second_id():
    d = read("the 20\n<s> 5 #fairseq:overwrite\n")
    assert d.index("<s>") == 5 and d.bos() == 0 and len(d) == 6 and d.get_count(5) == 5


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "dict.txt").write_bytes(b"caf\xe9 1\n")
    with pytest.raises(ValueError, match=r"dict\.txt: not a dictionary in UTF-8"):
        Dictionary.load(tmp_path / "dict.txt")


def test_special_symbols_may_stand_anywhere_or_nowhere():
    d = Dictionary.from_symbols(["<pad>", "a", "[BOS]", "</s>"], bos="[BOS]")
    assert (d.pad(), d.bos(), d.eos(), d.unk(), d.nspecial) == (0, 2, 3, None, 0)
    with pytest.raises(ValueError, match="'b' is not in the vocabulary, which has no '<unk>'"):
        d.index("b")
    with pytest.raises(ValueError, match="does not start with <s> <pad> </s> <unk>"):
        d.save(io.StringIO())
    with pytest.raises(ValueError, match="'a' is twice"):
        Dictionary.from_symbols(["a", "b", "a"])


def test_token_ids_orders_fills_and_refuses():
    assert token_ids({"b": 2, "a": 0}) == ["a", "madeupword0001", "b"]
    with pytest.raises(ValueError, match="'b' has the id 0, which is taken"):
        token_ids({"a": 0, "b": 0})
    with pytest.raises(ValueError, match="has the id 99999"):
        token_ids({"a": 0, "b": 99999})


symbols = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1)


@given(st.lists(symbols, unique=True))
def test_any_dictionary_survives_its_file(words):
    d = Dictionary()
    for number, word in enumerate(words):
        d.add_symbol(word, number)
    file = io.StringIO()
    d.save(file)
    again = read(file.getvalue())
    assert again.symbols == d.symbols
    assert again.encode_line(" ".join(words)).tolist() == [*map(d.index, words), 2]
