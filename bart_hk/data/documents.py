"""Texts as documents of lines: plain text, Markdown, JSON lines, packed or not, and folders.

A line becomes an item of a token store, and an empty one ends a document, as for fairseq. Memory
does not grow with the size of a file or of a document.
"""

import bz2
import collections
import gzip
import io
import json
import logging
import lzma
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bart_hk.data.readers import DataError

TEXT, MARKDOWN, JSON_LINES = (".txt", ".text"), (".md", ".markdown"), (".jsonl", ".ndjson")
PACKED = (".gz", ".xz", ".zst", ".bz2")
FIELDS = ("text", "content", "document", "source")
MANIFEST = "preprocess.json"  # of a folder that bart-hk-preprocess has made
_BINARY = (".zip", ".tar", ".tgz", ".7z", ".bin", ".idx", ".pt", ".parquet", ".arrow", ".pdf")
_PIECE = 1 << 20  # characters of a document that are held at once
_LONGEST = 64 << 20  # bytes of a line; beyond it is no text, or not in lines
_log = logging.getLogger(__name__)

_RULE = re.compile(r"\s*([-*_=]\s*){3,}$")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+(.*?)[\s#]*$")
_FENCE = re.compile(r"\s*(```|~~~)")
_LEADING = re.compile(r"^\s*(?:>\s?|[-*+]\s+(?=\S))+")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)\s]*(?:\s+\"[^\"]*\")?\)")
_EMPHASIS = re.compile(r"(?<![\w*])(\*{1,3}|_{1,3}|`+)(?=\S)(.+?)(?<=\S)\1(?![\w*])")


class Piece(NamedTuple):
    """Lines of a document, stripped; `begins`: they are its first."""

    lines: list[str]
    begins: bool


@dataclass(frozen=True)
class TextFile:
    """A file of documents.

    Attributes:
        path: of the file.
        size: bytes, as it lies there.
    """

    path: Path
    size: int

    def pieces(
        self, field: str | None = None, progress: Callable[[int], object] | None = None
    ) -> Iterator[Piece]:
        """The documents, in pieces; `field` is the one of a JSON object with the text.

        `progress` is called now and then with the bytes of the file that have been read.

        Lines of plain text are all given, empty ones too (a document's own come after it), so that
        there are as many items as lines. Markdown is one document; its paragraphs are the lines,
        without marks for headings, emphasis, quotes, lists and links. A JSON object is one, and so
        are the texts in a list of its field.

        Raises:
            DataError: the file is not what its name says; names the line.
        """
        kind = self.kind()
        lines = self._lines(progress)
        if kind in JSON_LINES:
            return _json_documents(self.path, lines, field)
        if kind in MARKDOWN:
            return _cut(_paragraphs(text for _, text in lines))
        return _plain_documents(text for _, text in lines)

    def kind(self) -> str:
        """The suffix, that of what was packed where it was; "" without one.

        Raises:
            DataError: it is of files that are not read.
        """
        kind = _suffix(self.path)
        if kind in _BINARY:
            raise DataError(f"{self.path} is no text; unpack or convert it, and name the files")
        return kind

    def _lines(self, progress: Callable[[int], object] | None) -> Iterator[tuple[int, str]]:
        """Numbered lines, stripped; also a lone carriage return ends one, as in Python."""
        number = 1
        try:
            with open(self.path, "rb") as packed, _unpacked(self.path, packed) as file:
                while raw := file.readline(_LONGEST):
                    if len(raw) == _LONGEST:
                        raise DataError(f"{self.path}, line {number}: over {_LONGEST >> 20} MB")
                    if number == 1:
                        raw = raw.removeprefix(b"\xef\xbb\xbf")
                    for part in _decoded(self.path, number, raw):
                        yield number, part
                    number += 1
                    if progress is not None and number % 1000 == 0:
                        progress(packed.tell())
        except (OSError, EOFError, lzma.LZMAError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.path} cannot be read: {error}") from None


def _decoded(path: Path, number: int, raw: bytes) -> list[str]:
    if b"\0" in raw:
        raise DataError(f"{path}, line {number}: it holds a NUL byte, so it is no text in UTF-8")
    try:
        line = raw.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not UTF-8 (byte 0x{raw[error.start]:02x} at column "
            f"{error.start + 1}); convert the file, for example with iconv"
        ) from None
    if "\r" not in line:
        return [line.strip()]
    line = line.replace("\r\n", "\n").removesuffix("\n").removesuffix("\r")
    return [part.strip() for part in line.split("\r")]


def _unpacked(path: Path, file: BinaryIO) -> Any:
    """What is in a file that is open."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(file)
    if suffix == ".xz":
        return lzma.open(file)
    if suffix == ".bz2":
        return bz2.open(file)
    if suffix == ".zst":
        return _unpacked_zstandard(path, file)
    return file


def _unpacked_zstandard(path: Path, file: BinaryIO) -> Any:
    try:
        import zstandard
    except ModuleNotFoundError:
        raise DataError(
            f"{path}: reading .zst needs zstandard; pip install 'bart_hk[train]'"
        ) from None
    return io.BufferedReader(_Zstandard(file, zstandard.ZstdDecompressor, zstandard.ZstdError))


class _Zstandard(io.RawIOBase):
    """Unpacks a file; the library's own reader takes one that was cut short for a whole one."""

    def __init__(self, file: BinaryIO, decompressor: Any, error: type[Exception]) -> None:
        self._file, self._make, self._error = file, decompressor, error
        self._frame: Any = None
        self._ahead = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ahead:
            packed = self._frame.unused_data if self._frame and self._frame.eof else b""
            packed = packed or self._file.read(1 << 17)
            if not packed:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("it was cut short")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._make().decompressobj()
            try:
                self._ahead = self._frame.decompress(packed)
            except self._error as error:
                raise OSError(str(error)) from None
        size = min(len(buffer), len(self._ahead))
        buffer[:size], self._ahead = self._ahead[:size], self._ahead[size:]
        return size


def _plain_documents(lines: Iterable[str]) -> Iterator[Piece]:
    """Documents with the empty lines after them; those before the first go with it."""
    held: list[str] = []
    size, begins, ended, some = 0, True, False, False
    for line in lines:
        if line and ended:
            yield Piece(held, begins)
            held, size, begins, some = [], 0, True, False
        elif size > _PIECE:
            yield Piece(held, begins)
            held, size, begins = [], 0, False
        some = some or bool(line)
        ended = some and not line
        held.append(line)
        size += len(line) + 1
    if held:
        yield Piece(held, begins)


def _cut(lines: Iterable[str]) -> Iterator[Piece]:
    """One document, in pieces."""
    held: list[str] = []
    size, begins = 0, True
    for line in lines:
        if size > _PIECE:
            yield Piece(held, begins)
            held, size, begins = [], 0, False
        held.append(line)
        size += len(line) + 1
    if held:
        yield Piece(held, begins)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Paragraphs and headings of Markdown, each on a line of its own, without marks."""
    held: list[str] = []
    fenced = False
    for line in lines:
        if _FENCE.match(line):
            fenced = not fenced
        heading = None if fenced else _HEADING.match(line)
        ends = not line or bool(heading or _FENCE.match(line) or _RULE.match(line))
        if (ends or fenced) and held:
            yield " ".join(held)
            held = []
        if heading and heading[1]:
            yield _unmarked(heading[1])
        elif not ends:
            held.append(line if fenced else _unmarked(_LEADING.sub("", line)))
    if held:
        yield " ".join(held)


def _unmarked(text: str) -> str:
    if "[" in text:
        text = _LINK.sub(r"\1", text)
    if any(mark in text for mark in "*_`"):
        for _ in range(3):  # one inside the other
            text = _EMPHASIS.sub(r"\2", text)
    return text.strip()


def _json_documents(
    path: Path, lines: Iterable[tuple[int, str]], field: str | None
) -> Iterator[Piece]:
    for number, line in lines:
        if not line:
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: not a JSON object")
        if field is None:
            field = next((name for name in FIELDS if name in record), None)
            if field is None:
                raise DataError(
                    f"{path}, line {number}: no field {', '.join(FIELDS)}, only "
                    f"{', '.join(record)}; name the one with the text"
                )
        value = record.get(field)
        texts: list[Any] = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{path}, line {number}: {field!r} is not text, or is missing")
        for text in texts:
            try:
                text.encode()
            except UnicodeEncodeError:
                raise DataError(
                    f"{path}, line {number}: {field!r} holds half a character"
                ) from None
        parts = (part.strip() for text in texts for part in text.splitlines())
        yield from _cut(part for part in parts if part)


def find_files(inputs: Iterable[str | Path]) -> list[TextFile]:
    """The files of some files and folders; those of a folder in the order of their names.

    A file that is named may have any suffix, and is plain text unless it tells otherwise; of a
    folder those count whose suffix is known, but for hidden ones. A warning counts the others.

    Raises:
        DataError: there is none, one does not exist, is named twice or is of a kind that is not
            read, or a folder is the output of `preprocess`.
    """
    found: list[Path] = []
    for name in map(Path, inputs):
        if name.is_dir():
            shown = sorted(p for p in name.rglob("*") if p.is_file() and not _hidden(p, name))
            made = next((path.parent for path in shown if path.name == MANIFEST), None)
            if made is not None:
                raise DataError(f"{made} holds token stores, not texts; name what they are made of")
            known = (*TEXT, *MARKDOWN, *JSON_LINES)
            inside = [path for path in shown if _suffix(path) in known]
            others = collections.Counter(_suffix(p) for p in shown if _suffix(p) not in known)
            if others and inside:
                kinds = ", ".join(f"{kind or 'none'} {n}" for kind, n in others.most_common(8))
                total = sum(others.values())
                _log.warning("%s: %d files of other kinds left out (%s)", name, total, kinds)
            if not inside:
                raise DataError(f"{name} holds no text: no {', '.join(known)}, packed or not")
            found += inside
        elif name.is_file():
            found.append(name)
        else:
            raise DataError(f"{name} does not exist")
    if not found:
        raise DataError("no text was named; give files or folders")
    seen: set[Path] = set()
    for path in found:
        if path.resolve() in seen:
            raise DataError(f"{path} is named twice")
        seen.add(path.resolve())
    files = [TextFile(path, path.stat().st_size) for path in found]
    for file in files:
        file.kind()  # raises before anything is read
    return files


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _suffix(path: Path) -> str:
    """The last, in lower case, but for that of packing; "" without one."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""
