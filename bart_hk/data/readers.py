"""Tables of texts and labels: TSV, CSV and JSON lines, checked whole before anything uses them.

Every complaint names the file and the line, counted from 1 as editors do.
"""

import csv
import dataclasses
import difflib
import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

FORMATS = (".tsv", ".csv", ".jsonl")
COMPRESSIONS = (".gz", ".xz")

# Columns under which published data sets keep their texts; pairs before singles, because a file
# with `sentence1` and `sentence2` may also hold a `text`.
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text1", "text2"),
    ("#1 String", "#2 String"),
    ("sentence",),
    ("text",),
)
LABEL_COLUMNS = ("label", "gold_label", "score", "Quality", "is_duplicate", "class")

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class DataError(ValueError):
    """A data file is not what it should be; the message names the file, the line and the remedy."""


class JsonField(str):
    """A field that is no string in JSON, as JSON: a number, a list, an object, true or false."""

    @property
    def kind(self) -> str:
        """What it is, where it can be no text; "" for numbers."""
        return {"[": "a list", "{": "an object", "t": "true", "f": "false"}.get(self[0], "")


class Record(NamedTuple):
    """A row: the line it begins on, and its fields, `JsonField` where they are no strings."""

    line: int
    fields: list[str]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of one file, all as long as its header."""

    path: Path
    header: list[str]
    records: list[Record]

    def column(self, name: str) -> int:
        """The number of a column.

        Raises:
            DataError: it is not there; the nearest is named.
        """
        return self.header.index(_present(self.path, self.header, name))

    def where(self, row: int) -> str:
        """`FILE, line N`, for messages about a row."""
        return f"{self.path}, line {self.records[row].line}"

    def text(self, row: int, name: str, *, empty: bool = False) -> str:
        """The text in a column of a row.

        Raises:
            DataError: it is empty, unless `empty`, or in JSON something that is no text.
        """
        field = self.records[row].fields[self.column(name)]
        if isinstance(field, JsonField) and field.kind:
            raise DataError(
                f"{self.where(row)}: {name!r} is {field.kind}, and a text is wanted: write a string"
            )
        if not empty and not field.strip():
            raise DataError(f"{self.where(row)}: {name!r} is empty; remove the line")
        return field


@dataclasses.dataclass(frozen=True)
class Examples:
    """The rows of one file: `texts[i]` has one or two texts, `lines[i]` is where row i begins."""

    path: Path
    text_columns: tuple[str, ...]
    label_column: str
    texts: list[tuple[str, ...]]
    labels: list[str]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, row: int) -> str:
        """`FILE, line N`, for messages about a row."""
        return f"{self.path}, line {self.lines[row]}"


def read_table(
    path: str | Path, header: Sequence[str] | None = None, *, skip_malformed: bool = False
) -> Table:
    """Reads a table with a header (`.tsv`, `.csv`) or objects (`.jsonl`); `.gz`, `.xz` unpacked.

    TSV is read without quoting, as GLUE's files are written; CSV with RFC 4180's quoting. UTF-8,
    with or without a byte order mark, LF or CRLF.

    Args:
        path: the file.
        header: names of the columns, for a file that has no line with them.
        skip_malformed: leave out rows with more or fewer fields than the header has.

    Raises:
        DataError: the file is missing, empty or malformed.
    """
    path = Path(path)
    records = _records(path)
    if header is None:
        try:
            _, header = next(records)
        except StopIteration:
            raise DataError(f"{path} is empty; it needs a header and rows") from None
    header = list(header)
    for name in header:
        if header.count(name) > 1:
            raise DataError(f"{path}, line 1: two columns are named {name!r}")
    kept = []
    for line, fields in records:
        if len(fields) == len(header):
            kept.append(Record(line, fields))
        elif not skip_malformed:
            raise DataError(
                f"{path}, line {line}: {len(fields)} columns where the header has {len(header)} "
                f"({', '.join(header)})"
            )
    return Table(path, header, kept)


def read_examples(
    path: str | Path,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    *,
    header: Sequence[str] | None = None,
    skip_malformed: bool = False,
    empty_texts: bool = False,
    several_labels: bool = False,
) -> Examples:
    """Texts and labels of a table; see `read_table` for the formats, `header`, `skip_malformed`.

    Args:
        path: the file.
        text_columns: one or two names. By default the first of `TEXT_COLUMNS` that is there, or,
            in a table of two columns, the one that is not the label.
        label_column: by default the first of `LABEL_COLUMNS` that is there.
        empty_texts: texts may be empty.
        several_labels: a row may have none, and in JSON a list of them.

    Raises:
        DataError: as `read_table`, or a column is not there, a text or a label is empty or is none.
    """
    table = read_table(path, header, skip_malformed=skip_malformed)
    path = table.path
    label = _label_column(path, table.header, label_column)
    names = _text_columns(path, table.header, text_columns, label)
    at_label = table.header.index(label)
    if label in names or len(set(names)) < len(names):
        raise DataError(
            f"{path}: the texts are in {', '.join(names)} and the labels in {label}; give every "
            "column once, in task.text_columns or task.label_column"
        )
    examples = Examples(path, names, label, [], [], [])
    for row, (line, fields) in enumerate(table.records):
        texts = tuple(table.text(row, name, empty=empty_texts) for name in names)
        field = fields[at_label]
        fitting = ("", "true", "false", *(["a list"] if several_labels else []))
        if isinstance(field, JsonField) and field.kind not in fitting:
            raise DataError(
                f"{path}, line {line}: {label!r} is {field.kind}, and a label is a string or a "
                "number (lists are for task.multi_label=true)"
            )
        if not field.strip() and not several_labels:
            raise DataError(f"{path}, line {line}: {label!r} is empty; every row needs a label")
        examples.texts.append(texts)
        examples.labels.append(field.strip())
        examples.lines.append(line)
    if not examples.texts:
        raise DataError(f"{path} has a header and no rows")
    return examples


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file; empty ones at its end are left out.

    Raises:
        DataError: it is missing, damaged or not UTF-8.
    """
    return [line for _, line in _lines(Path(path))]


def parse_json(where: str, text: str) -> Any:
    """What a text in JSON says.

    Args:
        where: it stands, for the message.

    Raises:
        DataError: it is no JSON, is nested too deep, has a number of too many digits, or half of a
            surrogate pair, which is no character.
    """
    try:
        value = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"{where}: {half} is half of a surrogate pair and no character; remove it, or "
            "write the file again with both halves"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from None
    return value


def _label_column(path: Path, header: list[str], asked: str | None) -> str:
    if asked is not None:
        return _present(path, header, asked, "task.label_column")
    for name in LABEL_COLUMNS:
        if name in header:
            return name
    raise DataError(
        f"{path} has no column {LABEL_COLUMNS[0]!r}; its columns are {', '.join(header)}: "
        "name the one with the labels in task.label_column"
    )


def _text_columns(
    path: Path, header: list[str], asked: Sequence[str] | None, label: str
) -> tuple[str, ...]:
    if asked:
        if len(asked) > 2:
            raise DataError(f"task.text_columns takes one or two names, not {len(asked)}")
        return tuple(_present(path, header, name, "task.text_columns") for name in asked)
    for names in TEXT_COLUMNS:
        if set(names) <= set(header) and label not in names:
            return names
    if len(header) == 2:
        return tuple(name for name in header if name != label)
    raise DataError(
        f"{path} has the columns {', '.join(header)}: name the one or two with the texts in "
        "task.text_columns"
    )


def _present(path: Path, header: list[str], name: str, option: str = "") -> str:
    if name in header:
        return name
    near = difflib.get_close_matches(name, header, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if option and not near:
        hint = f"; rename this file's, or name those of all files in {option}"
    raise DataError(f"{path} has no column {name!r}, only {', '.join(header)}{hint}")


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Pairs (line, fields), the first of which is the header."""
    suffixes = [s.lower() for s in path.suffixes[-2:]]
    kind = suffixes[-1] if suffixes else ""
    if kind in COMPRESSIONS and len(suffixes) == 2:
        kind = suffixes[0]
    lines = _lines(path)
    if kind not in FORMATS:
        raise DataError(f"{path}: the format is told by the name; use {', '.join(FORMATS)}")
    if kind == ".tsv":
        return ((number, line.split("\t")) for number, line in lines)
    return _csv_records(path, lines) if kind == ".csv" else _jsonl_records(path, lines)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines without their ends; empty lines at the end of the file are dropped."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file")
    try:
        data = path.read_bytes()
        if path.suffix.lower() in COMPRESSIONS:
            data = (gzip if path.suffix.lower() == ".gz" else lzma).decompress(data)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    return _numbered(path, data.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n"))


def _numbered(path: Path, data: bytes) -> Iterator[tuple[int, str]]:
    # Only \n ends a line: str.splitlines would also cut at U+2028 and its like inside a text.
    for number, line in enumerate(data.split(b"\n") if data else (), 1):
        try:
            yield number, line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at column "
                f"{error.start + 1}); convert the file, for example with iconv"
            ) from None


def _csv_records(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader((line + "\n" for _, line in lines), strict=True)
    start = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, line {start}: {error}") from None
        yield start, fields
        start = reader.line_num + 1


def _jsonl_records(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    header: list[str] | None = None
    for number, line in lines:
        record = parse_json(f"{path}, line {number}", line)
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: not a JSON object")
        if header is None:
            header = list(record)
            yield number, header
        for name in header:
            if name not in record:
                raise DataError(f"{path}, line {number}: {name!r} is missing, which line 1 has")
        yield number, [_as_text(record[name]) for name in header]


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    # Lists and objects are harmless in a column that nobody asks for.
    return "" if value is None else JsonField(json.dumps(value))
