"""What the label column of a table says: classes, lists of them, numbers."""

import json
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from bart_hk.data.readers import DataError, Examples


def separated(text: str, separator: str) -> Any:
    """The labels of a row, each once."""
    try:
        found = json.loads(text) if text.startswith("[") else text.split(separator)
    except (ValueError, RecursionError):  # a label that begins so
        found = text.split(separator)
    labels = (label if isinstance(label, str) else json.dumps(label) for label in found)
    return list(dict.fromkeys(label.strip() for label in labels if label.strip()))


def label_names(
    path: Path,
    labels_of_rows: Iterable[Iterable[str]],
    given: Sequence[str],
    *,
    several: bool = False,
    num_classes: int = -1,
    unit: str = "row",
) -> list[str]:
    """The classes in the order of a head's outputs: those given, or those found, sorted, numbers as
    numbers.

    Args:
        path, labels_of_rows: the training file and what it has.
        several: any number of classes may hold.
        num_classes: how many are expected, if positive.
        unit: what a label belongs to.

    Raises:
        DataError: there are too few, one is given twice, or others are expected.
    """
    found = {label for labels in labels_of_rows for label in labels}
    labels = list(given) or sorted(found, key=_order)
    for label in labels:
        if labels.count(label) > 1:
            raise DataError(f"task.labels has {label!r} twice")
    if not found:
        raise DataError(f"{path}: no {unit} has a label")
    if len(found) < 2 and not several:
        numbers = " (for numbers to predict, set criterion.regression_target=true)"
        raise DataError(
            f"{path}: every {unit} has the label {min(found)!r}; two classes at least are needed"
            + (numbers if unit == "row" else "")
        )
    if num_classes > 0 and num_classes != len(labels):
        raise DataError(
            f"task.num_classes={num_classes}, but there are {len(labels)} labels: "
            f"{', '.join(labels[:10])}"
        )
    return labels


def check_label(label: str, labels: Collection[str], given: bool, train: Path, where: str) -> None:
    """Refuses a label, of the place `where`, that is not one of `labels`.

    Args:
        given: they are task.labels, not those of the file `train`.

    Raises:
        DataError: it is not.
    """
    if label not in labels:
        remedy = "name it there, too" if given else "name all classes in task.labels"
        raise DataError(
            f"{where}: label {label!r} is not in {'task.labels' if given else train}, which has "
            f"{', '.join(labels)}; correct it, or {remedy}"
        )


def _order(label: str) -> tuple[bool, int, str]:
    """Numbers as numbers, then the others."""
    digits = label.isascii() and label.isdigit()
    return not digits, int(label) if digits else 0, label


def number(examples: Examples, row: int, hint: str = "") -> float:
    """A label as a number; `hint` is a remedy for where it is none.

    Raises:
        DataError: it is none, or not finite.
    """
    try:
        value = float(examples.labels[row])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{examples.where(row)}: label {examples.labels[row]!r} is not a finite number, which "
            f"a regression needs{hint}"
        )
    return value
