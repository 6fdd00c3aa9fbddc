"""What `bart-hk-generate` reads: a text on every line, or columns, or JSON."""

import dataclasses
import difflib
import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

COLUMNS = ("source", "target", "prefix", "constraints")


@dataclass(frozen=True)
class Item:
    """One input: its number from 0, and what its line says."""

    number: int
    source: str
    target: str | None = None  # a reference
    prefix: str | None = None  # what the output begins with
    constraints: tuple[str, ...] | None = None  # phrases
    unread: tuple[str, ...] = ()  # what else its JSON object has


@dataclass(frozen=True)
class Format:
    """How a line is read.

    Attributes:
        columns: names from `COLUMNS` for what stands between tabs, "constraints" last, for all that
            follows; none where a line is a source as a whole.
        json: every line is a JSON object with those names as keys instead.
    """

    columns: tuple[str, ...] = ()
    json: bool = False

    @classmethod
    def of(
        cls, path: Path | None, columns: Sequence[str] | None, has_constraints: bool
    ) -> "Format":
        """By the end of the file's name, unless columns are given.

        Raises:
            ValueError: there is no such column, or their order cannot be read.
        """
        name = "" if path is None else path.name.removesuffix(".gz").lower()
        if columns is None:
            if name.endswith(".jsonl"):
                return cls(json=True)
            if has_constraints:  # as fairseq-interactive
                columns = ("source", "constraints")
            else:
                columns = ("source", "target") if name.endswith(".tsv") else ()
            return cls(tuple(columns))
        for column in columns:
            if column not in COLUMNS:
                known = ", ".join(COLUMNS)
                raise ValueError(f"--columns: there is no column {column!r}; choose from {known}")
            if columns.count(column) > 1:
                raise ValueError(f"--columns: {column!r} is there twice")
        if "source" not in columns:
            raise ValueError("--columns must name the source")
        if "constraints" in columns[:-1]:
            raise ValueError("--columns: constraints come last, and take all columns that follow")
        if has_constraints and "constraints" not in columns:
            raise ValueError(
                "--constraints says in which order phrases come, but --columns names none; "
                'end it with "constraints"'
            )
        return cls(tuple(columns))

    def parse(self, number: int, line: str, where: str) -> Item:
        """The item on a line.

        Raises:
            ValueError: the line does not have this format.
        """
        if self.json:
            return _from_json(number, line, where)
        if not self.columns:
            return Item(number, line.strip())
        fields: list[Any] = line.split("\t")
        names = list(self.columns)
        if names[-1] == "constraints":
            before = len(names) - 1
            # A space before a word says that it stands within a text, so it stays.
            rest = tuple(field for field in fields[before:] if field.strip())
            fields = [*fields[:before], rest] if len(fields) >= before else fields
        if len(fields) != len(names):
            raise ValueError(
                f"{where}: {len(fields)} columns between tabs, not {len(names)} "
                f"({', '.join(names)}); --columns names them"
            )
        found = dict(zip(names, fields, strict=True))
        for name in ("source", "target"):
            if name in found:
                found[name] = found[name].strip()
        return Item(number, **found)


def _from_json(number: int, line: str, where: str) -> Item:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("source"), str):
        raise ValueError(f'{where}: not a JSON object with a text as "source"')
    unread = tuple(name for name in record if name not in COLUMNS)
    for name in unread:
        near = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.8)
        if near and near[0] not in record:
            raise ValueError(f'{where}: there is no key "{name}"; did you mean "{near[0]}"?')
    found: dict[str, Any] = {name: record[name] for name in COLUMNS if record.get(name) is not None}
    for name, value in found.items():
        texts = value if name == "constraints" and isinstance(value, list) else [value]
        if name == "constraints" and not isinstance(value, list):
            texts = [None]
        if not all(isinstance(text, str) for text in texts):
            kind = "a list of texts" if name == "constraints" else "a text"
            raise ValueError(f'{where}: "{name}" is not {kind}')
    if "constraints" in found:
        found["constraints"] = tuple(found["constraints"])
    return Item(number, **found, unread=unread)


def open_lines(path: Path) -> IO[bytes]:
    """A file for reading, unpacked if its name ends in .gz.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        return gzip.open(path) if path.suffix == ".gz" else open(path, "rb")  # type: ignore[return-value]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist") from None


def lines_of(file: Iterable[bytes], name: str) -> Iterator[tuple[str, str]]:
    """(text, where it is) of every line; only a line feed ends one.

    Raises:
        ValueError: a line is not UTF-8, or a packed file is damaged.
    """
    lines = iter(file)
    for number in itertools.count(1):
        try:
            line = next(lines)
        except StopIteration:
            return
        except (EOFError, zlib.error) as error:
            raise ValueError(f"{name} is damaged at line {number}: {error}") from None
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        where = f"{name}, line {number}"
        try:
            yield line.decode().rstrip("\r\n"), where
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at column "
                f"{error.start + 1}); convert the file, for example with iconv"
            ) from None


def read_items(
    lines: Iterable[tuple[str, str]],
    line_format: Format,
    references: Iterable[tuple[str, str]] | None = None,
) -> Iterator[Item]:
    """The items of all lines, with the references beside them.

    Raises:
        ValueError: as `Format.parse`; or there are not as many references as items.
    """
    others = None if references is None else iter(references)
    where = "the input"
    for number, (line, where) in enumerate(lines):
        item = line_format.parse(number, line, where)
        if others is not None:
            reference, _ = next(others, (None, ""))
            if reference is None:
                raise ValueError(f"{where}: the references end before it")
            if item.target is not None:
                raise ValueError(
                    f'{where}: its "target" and the references both say what is right; give one'
                )
            item = dataclasses.replace(item, target=reference.strip())
        yield item
    if others is not None and (more := next(others, None)) is not None:
        raise ValueError(f"{more[1]}: more references than inputs, which end with {where}")
