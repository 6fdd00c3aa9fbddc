"""What the label column of a table says: classes, lists of them, numbers."""

import json
import math
from collections.abc import Sequence
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
    train: Examples, given: Sequence[str], *, several: bool, num_classes: int = -1
) -> list[str]:
    """The classes in the order of a head's outputs: those given, or those found, sorted, numbers as
    numbers.

    Args:
        several: rows have lists of labels.
        num_classes: how many are expected, if positive.

    Raises:
        DataError: there are too few, one is given twice, or others are expected.
    """
    of_rows: Any = train.labels
    found = {label for row in of_rows for label in (row if isinstance(row, list) else [row])}
    labels = list(given) or sorted(found, key=label_order)
    for label in labels:
        if labels.count(label) > 1:
            raise DataError(f"task.labels has {label!r} twice")
    if not labels:
        raise DataError(f"{train.path}: no row has a label")
    if len(labels) < 2 and not several:
        raise DataError(
            f"{train.path}: every row has the label {labels[0]!r}; two classes at least are needed "
            "(for numbers to predict, set criterion.regression_target=true)"
        )
    if num_classes > 0 and num_classes != len(labels):
        raise DataError(
            f"task.num_classes={num_classes}, but there are {len(labels)} labels: "
            f"{', '.join(labels[:10])}"
        )
    return labels


def label_order(label: str) -> tuple[bool, int, str]:
    """What labels are sorted by: numbers as numbers, then the others."""
    digits = label.isascii() and label.isdigit()
    return not digits, int(label) if digits else 0, label


def number(examples: Examples, row: int) -> float:
    """A label as a number.

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
            "a regression needs"
        )
    return value
