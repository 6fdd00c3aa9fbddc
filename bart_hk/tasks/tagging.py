"""Words and their labels: CoNLL's files and JSON lines, and the F1 of entities.

Source of the metric: the CoNLL 2000 evaluation (`conlleval`), as seqeval computes it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bart_hk.data.readers import DataError, parse_json, read_lines

_WORDS = ("tokens", "words")
_LABELS = ("labels", "ner_tags", "tags", "pos_tags")


@dataclass(frozen=True)
class Sentence:
    """Words, a label for each, and the line where they begin."""

    words: tuple[str, ...]
    labels: tuple[str, ...]
    line: int


def read_tagged(path: Path, word_column: int = 0, label_column: int = -1) -> list[Sentence]:
    """Reads `.jsonl` objects with "tokens" and "labels"; or lines with a word and its label in
    columns, and an empty line after each sentence (CoNLL), `-DOCSTART-` lines left out.

    Raises:
        DataError: the file is missing, empty, or a line is not as it should be.
    """
    if {".tsv", ".csv"} & set(path.suffixes):
        raise DataError(
            f"{path} is a table; words and labels are read from .jsonl, or from .txt or "
            ".conll with one word and its label on a line"
        )
    in_json = ".jsonl" in path.suffixes
    lines = read_lines(path)
    found = list(
        _of_json(path, lines) if in_json else _of_columns(path, lines, word_column, label_column)
    )
    if not found:
        raise DataError(f"{path} has no sentence")
    return found


def _of_columns(
    path: Path, lines: Sequence[str], word_column: int, label_column: int
) -> Iterable[Sentence]:
    words: list[str] = []
    labels: list[str] = []
    begin, count = 1, 0
    for number, line in enumerate([*lines, ""], 1):
        fields = line.split("\t") if "\t" in line else line.split()
        if not line.strip() or fields[0] == "-DOCSTART-":
            if words:
                yield Sentence(tuple(words), tuple(labels), begin)
            words, labels = [], []
            continue
        if fields[0] == "#" and "=" in fields:
            raise DataError(f"{path}, line {number}: a comment, as in CoNLL-U; remove such lines")
        try:
            word, label = fields[word_column].strip(), fields[label_column].strip()
            same = word_column % len(fields) == label_column % len(fields)
        except IndexError:
            word = label = ""
        if not word or not label or same:
            raise DataError(
                f"{path}, line {number}: {line!r} has no word in column {word_column} and label in "
                f"column {label_column}; see task.word_column and task.label_column"
            )
        count = count or len(fields)
        if len(fields) != count:
            raise DataError(
                f"{path}, line {number}: {len(fields)} columns where the lines above have {count}"
            )
        if not words:
            begin = number
        words.append(word)
        labels.append(label)


def _of_json(path: Path, lines: Sequence[str]) -> Iterable[Sentence]:
    for number, line in enumerate(lines, 1):
        record = parse_json(f"{path}, line {number}", line)
        sides = []
        for names in (_WORDS, _LABELS):
            name = next((n for n in names if isinstance(record, dict) and n in record), None)
            if name is None or not isinstance(record[name], list):
                raise DataError(f"{path}, line {number}: there is no list {' or '.join(names)}")
            for item in record[name]:
                if isinstance(item, bool) or not isinstance(item, str | int | float):
                    raise DataError(
                        f"{path}, line {number}: {name} has {json.dumps(item)[:40]}, which is no "
                        "string and no number"
                    )
            sides.append(tuple(str(item).strip() for item in record[name]))
        words, labels = sides
        if len(words) != len(labels) or not words:
            raise DataError(f"{path}, line {number}: {len(words)} words and {len(labels)} labels")
        if not all(words) or not all(labels):
            raise DataError(f"{path}, line {number}: a word or a label is empty")
        yield Sentence(words, labels, number)


def entities(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first, last) of B-/I- labels; an I- after another kind begins an entity, as conlleval
    has it."""
    found = set()
    begin, kind = 0, ""
    for i, label in enumerate([*labels, "O"]):
        prefix, _, name = label.partition("-")
        goes_on = prefix == "I" and name == kind and kind
        if kind and not goes_on:
            found.add((kind, begin, i - 1))
            kind = ""
        if prefix in ("B", "I") and name and not goes_on:
            begin, kind = i, name
    return found


def entity_f1(predicted: Sequence[Sequence[str]], targets: Sequence[Sequence[str]]) -> float:
    """Over all sentences; 0 where there is nothing to find and nothing was found."""
    hits = size = 0
    for mine, right in zip(predicted, targets, strict=True):
        found, wanted = entities(mine), entities(right)
        hits += len(found & wanted)
        size += len(found) + len(wanted)
    return 2 * hits / size if size else 0.0
