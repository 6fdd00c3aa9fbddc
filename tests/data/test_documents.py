"""Texts as documents: every format, packed and not, and what is no text."""

import bz2
import gzip
import json
import lzma
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard

from bart_hk.data import documents
from bart_hk.data.documents import TextFile, find_files
from bart_hk.data.readers import DataError

PACK = {
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def write(path: Path, content: str | bytes) -> TextFile:
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return TextFile(path, len(data))


def read(file: TextFile, field: str | None = None) -> list[list[str]]:
    """The documents, whole."""
    found: list[list[str]] = []
    for piece in file.pieces(field):
        if piece.begins:
            found.append([])
        found[-1] += piece.lines
    return found


def test_lines_of_plain_text_are_all_there_and_documents_end_with_empty_ones(tmp_path):
    text = "\n  one  \r\ntwo\n\n\nthree\u2028still three\n \t\nfour"
    assert read(write(tmp_path / "a.txt", text)) == [
        ["", "one", "two", "", ""],
        ["three\u2028still three", ""],
        ["four"],
    ]
    assert read(write(tmp_path / "b.txt", "\ufeffone\rtwo\r\nthree\r")) == [["one", "two", "three"]]
    assert read(write(tmp_path / "no_suffix", "one\n")) == [["one"]]
    assert read(write(tmp_path / "empty.txt", "")) == []
    assert read(write(tmp_path / "blank.txt", "\n\n")) == [["", ""]]


def test_as_many_lines_as_python_reads(tmp_path):
    text = "a\n\nb\r\nc\rd\n\re\x0bf\x1cg\x85h\n"
    file = write(tmp_path / "a.txt", text)
    with open(file.path, encoding="utf-8") as opened:
        expected = [line.strip() for line in opened]
    assert [line for lines in read(file) for line in lines] == expected


def test_markdown_is_one_document_of_paragraphs_without_marks(tmp_path):
    text = """# A *fine* title #

First line of a
paragraph, with a [link](http://x.y "z") and __bold _and_ slanted__ words.
## Next
> quoted
> twice

- an item with snake_case and 2 * 3 * 4
***
```python
x = "_as_ it is"
```
Title: `code`
"""
    assert read(write(tmp_path / "a.md", text)) == [
        [
            "A fine title",
            "First line of a paragraph, with a link and bold and slanted words.",
            "Next",
            "quoted twice",
            "an item with snake_case and 2 * 3 * 4",
            'x = "_as_ it is"',
            "Title: code",
        ]
    ]


def test_a_json_object_is_a_document(tmp_path):
    records = [
        {"id": 1, "text": "one\n\n two "},
        {"text": ""},
        {"text": ["a list", "of\ntexts"], "id": 2},
    ]
    lines = "\n".join(json.dumps(record) for record in records) + "\n\n"
    file = write(tmp_path / "a.jsonl", lines)
    assert read(file) == [["one", "two"], ["a list", "of", "texts"]]
    other = write(tmp_path / "b.jsonl", '{"body": "x", "text": "y"}')
    assert read(other, "body") == [["x"]] and read(other) == [["y"]]


@pytest.mark.parametrize("suffix", PACK)
def test_packed_files_are_the_same(tmp_path, suffix):
    text = "one\ntwo\n\nthree é\n" * 5000
    plain = read(write(tmp_path / "a.txt", text))
    assert read(write(tmp_path / f"a.txt{suffix}", PACK[suffix](text.encode()))) == plain
    half = len(text) // 2
    joined = PACK[suffix](text[:half].encode()) + PACK[suffix](text[half:].encode())
    assert read(write(tmp_path / f"b.txt{suffix}", joined)) == read(write(tmp_path / "b.txt", text))
    assert read(write(tmp_path / f"c.jsonl{suffix}", PACK[suffix](b'{"text": "x"}'))) == [["x"]]


@pytest.mark.parametrize("suffix", PACK)
def test_a_packed_file_that_was_cut_or_damaged_is_noticed(tmp_path, suffix):
    """Never a silently shorter text."""
    packed = PACK[suffix](("one two three\n" * 50 + "\n").encode() * 200)
    for end in (len(packed) - 1, len(packed) // 2, 5):
        file = write(tmp_path / f"a.txt{suffix}", packed[:end])
        with pytest.raises(DataError, match=f"a.txt{suffix} cannot be read: ") as caught:
            read(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="cannot be read: "):
        read(write(tmp_path / f"b.txt{suffix}", b"this is no such file"))


@pytest.mark.parametrize("suffix", ["", *PACK])
def test_how_much_was_read_is_told(tmp_path, suffix):
    rng = np.random.default_rng(0)
    text = "\n".join(map(str, rng.integers(0, 10**12, 50_000))).encode()
    file = write(tmp_path / f"a.txt{suffix}", PACK[suffix](text) if suffix else text)
    told: list[int] = []
    assert sum(len(piece.lines) for piece in file.pieces(progress=told.append)) == 50_000
    assert told == sorted(told) and 0 < told[0] <= told[-1] <= file.size
    # bz2 reads ahead by hundreds of kilobytes, and a file of text is read by lines.
    assert len(set(told)) > (0 if suffix == ".bz2" else 2)


def test_a_long_document_comes_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_PIECE", 100)
    text = "".join(f"line {i}\n" for i in range(100)) + "\nlast\n"
    file = write(tmp_path / "a.txt", text)
    pieces = list(file.pieces())
    assert [piece.begins for piece in pieces].count(True) == 2 and len(pieces) > 5
    assert [line for piece in pieces for line in piece.lines] == text.splitlines()
    assert len(list(write(tmp_path / "a.md", text.replace("\n", "\n\n")).pieces())) > 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\ntw\xffo", r"line 2: not UTF-8 \(byte 0xff at column 3\); convert the fil"),
        ("a.txt", b"one\n\0two", "line 2: it holds a NUL byte, so it is no text"),
        ("a.zip", b"PK", "a.zip is no text; unpack or convert it, and name the files"),
        ("a.tar.xz", b"", "a.tar.xz is no text; unpack"),
        ("a.jsonl", b'{"text": "x"}\n{', r"line 2: not JSON \("),
        ("a.jsonl", b"[1]", "line 1: not a JSON object"),
        ("a.jsonl", b'{"text": "x"}\n{"body": 1}', "line 2: 'text' is not text, or is missing"),
        ("a.jsonl", b'{"text": ["x", 1]}', "line 1: 'text' is not text, or is missing"),
        ("a.jsonl", b'{"body": "x"}', "line 1: no field text, content, .*, only body; name the on"),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1: 'text' holds half a character"),
        ("a.jsonl", b"[" * 100_000, "line 1: not JSON"),
    ],
)
def test_what_is_no_text_is_named(tmp_path, name, content, message):
    file = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        read(file)
    assert str(file.path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_LONGEST", 1 << 20)
    with pytest.raises(DataError, match="a.txt, line 2: over 1 MB"):
        read(write(tmp_path / "a.txt", b"x\n" + b"y" * (2 << 20)))


def test_folders_give_their_texts_in_order(tmp_path, caplog):
    for name in ("b.txt", "a/z.md", "a/y.jsonl.gz", "c.TXT.xz", ".hidden/e.txt", ".f.txt"):
        write(tmp_path / "in" / name, "x")
    find_files([tmp_path / "in"])
    assert not caplog.messages
    for name in ("d.pdf", "e.json", "f.json.gz", "README"):
        write(tmp_path / "in" / name, "x")
    found = find_files([tmp_path / "in"])
    names = [str(file.path.relative_to(tmp_path / "in")) for file in found]
    assert names == ["a/y.jsonl.gz", "a/z.md", "b.txt", "c.TXT.xz"]
    assert [file.size for file in found] == [1, 1, 1, 1]
    (said,) = caplog.messages
    assert said.endswith("in: 4 files of other kinds left out (.json 2, none 1, .pdf 1)")


def test_inputs_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        find_files([tmp_path / "nowhere"])
    with pytest.raises(DataError, match="holds no text: no .txt, .text, .md"):
        find_files([tmp_path])
    with pytest.raises(DataError, match="no text was named"):
        find_files([])
    write(tmp_path / "a.txt", "x")
    with pytest.raises(DataError, match="a.txt is named twice"):
        find_files([tmp_path, tmp_path / "a.txt"])
    write(tmp_path / "a.zip", "x")
    with pytest.raises(DataError, match="a.zip is no text; unpack"):
        find_files([tmp_path / "a.txt", tmp_path / "a.zip"])
    write(tmp_path / "out" / "preprocess.json", "{}")
    with pytest.raises(DataError, match="out holds token stores, not texts; name what they are"):
        find_files([tmp_path])


def test_without_zstandard_one_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match=r"reading .zst needs zstandard; pip install 'bart_hk\[tra"):
        read(write(tmp_path / "a.txt.zst", PACK[".zst"](b"x")))
