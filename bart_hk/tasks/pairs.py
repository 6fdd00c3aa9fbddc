"""Sources and targets: tables, pairs of text files, fairseq's binarised folders.

FOLDER/train.tsv, valid.tsv            columns such as source and target; .csv, .jsonl as well
FOLDER/train.en, train.de, valid.en, ...                a text on every line
FOLDER/train.en-de.en.bin, train.en-de.en.idx, ...      of fairseq-preprocess
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bart_hk.data.readers import FORMATS, DataError, JsonField, read_lines, read_table
from bart_hk.data.store import TokenStore
from bart_hk.tasks import files
from bart_hk.text import TextEncoder

# Columns under which published data sets keep them.
SOURCE_COLUMNS = ("source", "src", "document", "article", "dialogue", "text", "body")
TARGET_COLUMNS = ("target", "tgt", "summary", "highlights", "reference", "headline", "subject")
READING = "translation"  # in bart_hk.json, the names of the columns that were learned
_STORE = (".bin", ".idx")  # of fairseq: two files of one name


@dataclass
class PairsConfig(files.FilesConfig):
    """Where sources and targets are."""

    # Of text files and binarised folders: the ends of their names, "en" and "de". If not given,
    # text files end in "source" and "target", and a binarised folder has one pair, which is taken.
    # With task.train=FOLDER/train they say which files.
    source_lang: str | None = None
    target_lang: str | None = None
    # Of tables; found by their usual names. In JSON a source may be a list of sentences, and a
    # target a list of references: the first is learned, all of them count in BLEU and ROUGE.
    source_column: str | None = None
    target_column: str | None = None


@dataclass(frozen=True)
class Pairs:
    """The rows of one split: texts, or the ids of a store with their `</s>`.

    Attributes:
        name: of the file, for messages.
        files: what they were read from.
        sources: texts, or stores' rows int32 [N].
        targets: of each row its references, the first of which is learned; or ids.
        lines: where each row begins.
        columns: of a table, `source_column` and `target_column`.
    """

    name: str
    files: tuple[Path, ...]
    sources: Sequence[str] | TokenStore
    targets: Sequence[Sequence[str]] | TokenStore
    lines: Sequence[int]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """`FILE, line N`, for messages about a row."""
        return f"{self.name}, line {self.lines[row]}"

    def texts(self) -> Iterable[str]:
        """Of both sides; none where they are ids."""
        if isinstance(self.sources, TokenStore) or isinstance(self.targets, TokenStore):
            return
        yield from self.sources
        for references in self.targets:
            yield from references[:1]


@dataclass(frozen=True)
class Splits:
    """Training and validation rows; `languages` and `binarised` where the names say so."""

    train: Pairs
    valid: Pairs | None
    languages: tuple[str, str] | None = None
    binarised: bool = False


def read_splits(config: PairsConfig, *, languages_are_symbols: bool = False) -> Splits:
    """Finds and reads everything.

    Args:
        languages_are_symbols: of the model: they may be given beside a table, too.

    Raises:
        DataError: a file or a column is missing, files have different lengths, a text is empty,
            or an option is for another layout than the one that is there.
    """
    found = _read_splits(config)
    if found.languages is None and config.source_lang is not None and not languages_are_symbols:
        raise DataError(
            f"{found.train.name} is a table: task.source_lang and task.target_lang are for pairs "
            "of files; name columns in task.source_column and task.target_column"
        )
    if found.languages is not None and (config.source_column or config.target_column):
        raise DataError(
            f"{found.train.name} is no table: leave out task.source_column and task.target_column"
        )
    return found


def _read_splits(config: PairsConfig) -> Splits:
    if (config.source_lang is None) != (config.target_lang is None):
        raise DataError("give task.source_lang and task.target_lang, or neither")
    given = None
    if config.source_lang is not None and config.target_lang is not None:
        given = config.source_lang, config.target_lang
    folder = files.folder_of(config)
    if folder is None:
        if given is None and config.train and not _is_table(config.train):
            raise DataError(
                f"task.train={config.train} is no table ({', '.join(FORMATS)}); of a text on every "
                "line give what comes before the languages, task.train=NAME task.source_lang=en "
                "task.target_lang=de for NAME.en and NAME.de"
            )
        if given is None or not config.train or _is_table(config.train):
            train, valid = files.table_files(config)
            return Splits(
                read_table_of_pairs(train, config),
                read_table_of_pairs(valid, config) if valid else None,
            )
        found = _lines_of(Path(config.train), given)
        return Splits(found, _lines_of(Path(config.valid), given) if config.valid else None, given)
    stores = sorted(
        match.group(1, 2)
        for path in folder.glob("train.*-*.*.idx")
        if (match := re.fullmatch(r"train\.(.+)-(.+)\.\1\.idx", path.name))
    )
    table = files.find_table(folder, ("train",))
    if stores:
        pair = _chosen(folder, stores, given)
        if table is not None and not given:
            raise DataError(
                f"task.data={folder} has {table.name} and stores of {'-'.join(pair)}; name the "
                "file to learn from in task.train, or the languages with task.source_lang and "
                "task.target_lang"
            )
        return Splits(*_both(folder, ".idx", lambda p: _stores(p, pair), pair), pair, True)
    pair = given or ("source", "target")
    texts = (folder / f"train.{pair[0]}").is_file()
    if table is not None and texts and not given:
        raise DataError(
            f"task.data={folder} has {table.name} and train.{pair[0]}; name the file to learn from "
            "in task.train"
        )
    if table is not None and not texts:
        train, valid = files.table_files(config)
        return Splits(
            read_table_of_pairs(train, config),
            read_table_of_pairs(valid, config) if valid else None,
        )
    if not texts:
        raise DataError(
            f"task.data={folder} has no train.tsv, .csv or .jsonl, no train.{pair[0]} and no "
            f"train.{pair[0]}-{pair[1]}.{pair[0]}.idx; name the files with task.train, or the "
            "languages with task.source_lang and task.target_lang"
        )
    return Splits(*_both(folder, "", lambda p: _lines_of(p, pair), pair), pair)


def _is_table(name: str) -> bool:
    return any(end.lower() in FORMATS for end in Path(name).suffixes[-2:])


def _chosen(
    folder: Path, there: Sequence[tuple[str, ...]], given: tuple[str, str] | None
) -> tuple[str, str]:
    """The direction that is asked for, or the only one; fairseq stores one under one name."""
    known = ", ".join(f"{a}-{b}" for a, b in there)
    if given is None:
        if len(there) > 1:
            raise DataError(
                f"task.data={folder} has {known}; choose with task.source_lang and task.target_lang"
            )
        return there[0][0], there[0][1]
    if given not in there and given[::-1] not in there:
        raise DataError(f"task.data={folder} has {known}, not {'-'.join(given)}")
    return given


def _both(
    folder: Path, suffix: str, read: Callable[[Path], Pairs], pair: tuple[str, str]
) -> tuple[Pairs, Pairs | None]:
    """train, and whichever validation split is there."""
    one, other = pair
    ends = [one]
    if suffix:
        ends = [f"{one}-{other}.{one}{suffix}", f"{other}-{one}.{one}{suffix}"]
    for name in files.VALID_NAMES:
        if any((folder / f"{name}.{end}").is_file() for end in ends):
            return read(folder / "train"), read(folder / name)
    return read(folder / "train"), None


def _stores(prefix: Path, pair: tuple[str, str]) -> Pairs:
    """PREFIX.en-de.en and PREFIX.en-de.de; or of de-en, as in fairseq."""
    source, target = pair
    stem = f"{prefix.name}.{source}-{target}"
    if not (prefix.parent / f"{stem}.{source}.idx").is_file():
        stem = f"{prefix.name}.{target}-{source}"
    return _of_stores(*(TokenStore(prefix.parent / f"{stem}.{language}") for language in pair))


def _of_stores(one: TokenStore, other: TokenStore) -> Pairs:
    """Sources and targets, row by row."""
    if len(one) != len(other):
        raise DataError(
            f"{one.prefix} has {len(one)} rows and {other.prefix} {len(other)}; they go row by "
            "row: make both again from texts of the same length"
        )
    paths = tuple(
        Path(f"{store.prefix}{end}") for store in (one, other) for end in (".bin", ".idx")
    )
    return Pairs(str(one.prefix), paths, one, other, range(1, len(one) + 1))


def _lines_of(prefix: Path, pair: tuple[str, str]) -> Pairs:
    """PREFIX.en and PREFIX.de."""
    source, target = (Path(f"{prefix}.{language}") for language in pair)
    return _lines_of_files(source, target)


def _lines_of_files(*paths: Path) -> Pairs:
    """Sources and targets, a text on every line."""
    sources, targets = (read_lines(path) for path in paths)
    if len(sources) != len(targets):
        raise DataError(
            f"{paths[0]} has {len(sources)} lines and {paths[1]} {len(targets)}; they go line by "
            "line, so both need the same number"
        )
    if not sources:
        raise DataError(f"{paths[0]} is empty")
    lines = range(1, len(sources) + 1)
    for path, texts in zip(paths, (sources, targets), strict=True):
        for line, text in zip(lines, texts, strict=True):
            if not text.strip():
                raise DataError(
                    f"{path}, line {line} is empty; remove it there and in the other file"
                )
    return Pairs(str(paths[0]), paths, sources, [[text] for text in targets], lines)


def read_pairs(
    path: Path,
    config: PairsConfig,
    targets: Path | None = None,
    *,
    learned: Mapping[str, str] | None = None,
) -> Pairs:
    """A table; or a text on every line, and their targets in another file: NAME.target beside
    NAME.source, if none is given; or fairseq's stores, NAME.en.bin and NAME.de.bin.

    `learned` are the `columns` of the table that a model was trained on: they are taken before
    those of usual names.

    Raises:
        DataError: as `read_splits`.
    """
    if targets is None and path.suffix == ".source":
        targets = path.with_suffix(".target")
    if targets is None:
        if path.suffix in _STORE:
            raise DataError(f"{path} is fairseq's store of one side: name the other's in --targets")
        return read_table_of_pairs(path, config, learned)
    if config.source_column or config.target_column:
        raise DataError(f"{path} is no table: leave out task.source_column and task.target_column")
    kinds = {place.suffix in _STORE for place in (path, targets)}
    if len(kinds) > 1:
        raise DataError(f"one of {path} and {targets} is fairseq's store and the other is text")
    if kinds == {True}:
        return _of_stores(TokenStore(path.with_suffix("")), TokenStore(targets.with_suffix("")))
    return _lines_of_files(path, targets)


def check_symbols(store: TokenStore, encoder: TextEncoder) -> None:
    """Makes sure that a store's ids are the encoder's, by the `dict.LANGUAGE.txt` beside it.

    Raises:
        DataError: they are of another vocabulary.
    """
    folder, language = store.prefix.parent, store.prefix.suffix
    files.check_dictionary(encoder, folder / f"dict{language}.txt", folder / "dict.txt")
    store.check_vocabulary(len(encoder.dictionary), "the model's tokenizer")


def read_table_of_pairs(
    path: Path, config: PairsConfig, learned: Mapping[str, str] | None = None
) -> Pairs:
    """One table; `learned` as in `read_pairs`.

    Raises:
        DataError: as `read_splits`.
    """
    table = read_table(path)
    found: dict[str, str] = {}
    for option, asked, usual in (
        ("source_column", config.source_column, SOURCE_COLUMNS),
        ("target_column", config.target_column, TARGET_COLUMNS),
    ):
        known = (learned or {}).get(option)
        name = asked or next((name for name in (known, *usual) if name in table.header), None)
        if name is None:
            raise DataError(
                f"{path} has the columns {', '.join(table.header)}: name the one with the "
                f"{option.partition('_')[0]}s in task.{option}"
            )
        found[option] = name
    columns = [table.column(name) for name in found.values()]
    if columns[0] == columns[1]:
        raise DataError(
            f"task.source_column and task.target_column are both {found['source_column']}"
        )
    sources, targets = [], []
    for row, record in enumerate(table.records):
        source, references = (
            _listed(record.fields[c]) or [table.text(row, table.header[c])] for c in columns
        )
        sources.append(" ".join(source))
        targets.append(references)
    if not sources:
        raise DataError(f"{path} has a header and no rows")
    lines = [record.line for record in table.records]
    return Pairs(str(path), (path,), sources, targets, lines, found)


def _listed(field: str) -> list[str]:
    """The texts of a JSON list without those that are empty; none if it is something else."""
    found: Any = json.loads(field) if isinstance(field, JsonField) else None
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        return []
    return [text.strip() for text in found if text.strip()]
