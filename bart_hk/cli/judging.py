"""What `bart-hk-evaluate` finds out: predictions of rows, metrics of them, the worst of them.

Shapes: N rows, C classes.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.data.readers import DataError, Examples, read_examples, read_table
from bart_hk.data.store import TokenStore
from bart_hk.hub import BARTHubInterface
from bart_hk.tasks import metrics
from bart_hk.tasks.glue import GlueTask
from bart_hk.tasks.labels import number, separated
from bart_hk.tasks.pairs import READING as OF_PAIRS
from bart_hk.tasks.pairs import Pairs, PairsConfig, check_symbols, read_pairs
from bart_hk.tasks.sentence_options import READING
from bart_hk.tasks.text_metrics import TextMetrics, caveats, settings
from bart_hk.text import TextEncoder


@dataclass
class Judged:
    """A model's answers to the rows of a file.

    Attributes:
        records: of each row, for the file of predictions.
        badness: float [N], by which the worst rows are the worst; NaN for those that are right.
        metrics: of row numbers.
        headline: lines for people, beside the metrics.
        confusion: counts [C, C], rows the true classes, with `labels`; None where there are none.
    """

    records: list[dict[str, Any]]
    badness: np.ndarray
    metrics: Callable[[np.ndarray], dict[str, float]]
    headline: list[str]
    confusion: np.ndarray | None = None
    labels: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return len(self.records)


def head_name(bart: BARTHubInterface, asked: str | None, otherwise: str = "") -> str | None:
    """The head that is asked for, or the only one; None where there is none.

    Raises:
        ValueError: there is no such head, or there are several; `otherwise` is what else may be
            said.
    """
    known = ", ".join(sorted(bart.heads)) or "none"
    if asked is not None and asked not in bart.heads:
        raise ValueError(f"there is no head {asked!r}; there are: {known}")
    if asked is None and len(bart.heads) > 1:
        raise ValueError(f"say which head with --head{otherwise}; there are: {known}")
    return asked or next(iter(bart.heads), None)


# --- Heads ----------------------------------------------------------------------------------------


def judge_head(
    bart: BARTHubInterface,
    name: str,
    path: Path,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
    label_separator: str | None = None,
    glue: GlueTask | None = None,
) -> Judged:
    """Of a classification or regression head, on a table with texts and labels. What is not given
    is as the head was trained, of columns those that the table has.

    Args:
        labels: names of the head's outputs, where the model does not have them.
        glue: reads the official file of a GLUE task.

    Raises:
        DataError: the file is not as it should be, or has labels that the head does not.
    """
    head = bart.heads[name]
    if glue is not None and glue.regression != head.regression:
        raise DataError(
            f"--glue {glue.folder} has {'numbers' if glue.regression else 'classes'}, and the head "
            f"{name!r} gives {'numbers' if head.regression else 'classes'}"
        )
    trained = as_trained(bart, READING)
    layout: dict[str, Any] = {}
    if glue is not None:
        layout = {"header": glue.header, "skip_malformed": glue.skip_malformed}
        trained = {
            "text_columns": glue.text_columns,
            "label_column": glue.label_column,
            "label_divisor": glue.divisor,
        }
    elif trained:
        header = read_table(path).header
        if not set(trained.get("text_columns", ())) <= set(header):
            trained = {**trained, "text_columns": None}
        if trained.get("label_column") not in header:
            trained = {**trained, "label_column": None}
    examples = read_examples(
        path,
        text_columns or trained.get("text_columns"),
        label_column or trained.get("label_column"),
        **layout,
        empty_texts=glue is not None,
        several_labels=head.multi_label,
    )
    rows = bart.encode(list(examples.texts), truncate=True)
    if head.regression:
        predicted = np.asarray(bart.predict(name, rows))[:, 0]
        return _values(examples, predicted, trained.get("label_divisor", 1.0))
    names = tuple(labels or head.labels or map(str, range(head.module.num_classes)))
    if len(names) != head.module.num_classes:
        raise DataError(
            f"--labels names {len(names)} classes, and the head {name!r} has "
            f"{head.module.num_classes}"
        )
    for i, label in enumerate(names):
        if names.count(label) > 1:
            raise DataError(f"--labels has {label!r} twice")
        if head.labels and label in head.labels and head.labels[i] != label:
            raise DataError(
                f"--labels has {label!r} in another place than the head {name!r}, which has "
                f"{', '.join(head.labels)}: leave --labels out"
            )
    probabilities = np.exp(np.asarray(bart.predict(name, rows), np.float64))
    if head.multi_label:
        separator = label_separator or trained.get("label_separator", ",")
        return _label_sets(examples, probabilities, names, separator)
    return _classes(examples, probabilities, names)


def as_trained(bart: BARTHubInterface, reading: str) -> dict[str, Any]:
    """How the training file of a model's only head was read, by the READING of the head's task;
    nothing where that is not known."""
    return bart.extras.get(reading, {}) if len(bart.heads) == 1 else {}


def _known(examples: Examples, row: int, label: str, names: Sequence[str]) -> int:
    if label not in names:
        raise DataError(
            f"{examples.where(row)}: label {label!r} is not one of the head's: {', '.join(names)} "
            "(--labels gives them other names, in this order)"
        )
    return list(names).index(label)


def _records(examples: Examples) -> list[dict[str, Any]]:
    return [
        {"line": line, **dict(zip(examples.text_columns, texts, strict=True)), "label": label}
        for line, texts, label in zip(examples.lines, examples.texts, examples.labels, strict=True)
    ]


def _classes(examples: Examples, probabilities: np.ndarray, names: tuple[str, ...]) -> Judged:
    labels = enumerate(examples.labels)
    targets = np.array([_known(examples, i, label, names) for i, label in labels], np.int64)
    predicted, count = probabilities.argmax(1), len(names)
    records = _records(examples)
    for record, row in zip(records, probabilities, strict=True):
        record["prediction"] = names[int(row.argmax())]
        record["probabilities"] = {n: round(float(p), 6) for n, p in zip(names, row, strict=True)}
    of_target = probabilities[np.arange(len(targets)), targets]
    confusion = np.bincount(targets * count + predicted, minlength=count * count)
    share = np.bincount(targets, minlength=count).max() / len(targets)
    return Judged(
        records,
        np.where(predicted == targets, np.nan, 1 - of_target),
        lambda rows: metrics.of_classes(predicted[rows], targets[rows], count),
        [f"the most frequent label would be right in {100 * share:.1f} %"],
        confusion.reshape(count, count),
        names,
    )


def _label_sets(
    examples: Examples, probabilities: np.ndarray, names: tuple[str, ...], separator: str
) -> Judged:
    targets = np.zeros(probabilities.shape, bool)
    for i, text in enumerate(examples.labels):
        for label in separated(text, separator):
            targets[i, _known(examples, i, label, names)] = True
    predicted = probabilities > 0.5
    records = _records(examples)
    for record, row in zip(records, probabilities, strict=True):
        record["prediction"] = [n for n, p in zip(names, row, strict=True) if p > 0.5]
        record["probabilities"] = {n: round(float(p), 6) for n, p in zip(names, row, strict=True)}
    wrong = np.where(predicted != targets, np.abs(probabilities - targets), 0).sum(1)
    return Judged(
        records,
        np.where(wrong > 0, wrong, np.nan),
        lambda rows: metrics.of_label_sets(predicted[rows], targets[rows]),
        [],
    )


def _values(examples: Examples, predicted: np.ndarray, divisor: float) -> Judged:
    targets = np.array([number(examples, i) for i in range(len(examples))]) / divisor
    records = _records(examples)
    for record, value in zip(records, predicted, strict=True):
        record["prediction"] = round(float(value) * divisor, 6)
    predicted = predicted.astype(np.float64)
    errors = np.abs(predicted - targets)

    def found(rows: np.ndarray) -> dict[str, float]:
        squares = float(np.mean(errors[rows] ** 2)) * divisor**2
        return metrics.of_values(predicted[rows], targets[rows]) | {"mean squared error": squares}

    return Judged(records, np.where(errors > 0, errors, np.nan), found, [])


# --- Texts ----------------------------------------------------------------------------------------


def judge_texts(
    bart: BARTHubInterface,
    path: Path,
    options: Mapping[str, Any],
    names: Sequence[str],
    *,
    source_column: str | None = None,
    target_column: str | None = None,
    targets_file: Path | None = None,
) -> Judged:
    """Of what the model writes for sources, compared with their targets.

    Raises:
        DataError: the file is not as it should be.
        ImportError: a metric's package is not installed.
    """
    TextMetrics(names)  # what is missing is missed before the work is done
    config = PairsConfig(source_column=source_column, target_column=target_column)
    pairs = read_pairs(path, config, targets_file, learned=bart.extras.get(OF_PAIRS))
    sources, targets = _texts(bart, pairs)
    beam = int(options.get("beam", bart.extras.get("generation", {}).get("beam", 5)))
    rest = {key: value for key, value in options.items() if key != "beam"}
    rows = bart.encode(sources, truncate=True)  # what is cut is counted
    hypotheses = bart.generate(rows, beam, attention=False, **rest)
    written = [bart.written(one[0])[0] for one in hypotheses]
    each: list[dict[str, Any]] = []
    records: list[dict[str, Any]] = []
    for i, (source, references) in enumerate(zip(sources, targets, strict=True)):
        one = TextMetrics(names)
        one.add(written[i], *references)
        each.append(one.state)
        records.append(
            {
                "line": pairs.lines[i],
                "source": source,
                "target": references[0] if len(references) == 1 else list(references),
                "prediction": written[i],
                **{name: round(value, 2) for name, value in one.results().items()},
            }
        )
    table = {key: np.array([state[key] for state in each]) for key in each[0]}

    def found(rows: np.ndarray) -> dict[str, float]:
        sums = {key: values[rows].sum(0) for key, values in table.items()}
        state = {key: value.tolist() for key, value in sums.items()}
        return TextMetrics(names, state).results()

    order = "rougeLsum" if "rouge" in names else "bleu"
    badness = np.array([100 - record[order] for record in records])
    headline = settings(names, [len(references) for references in targets])
    first = [references[0] for references in targets]
    headline += [f"warning: {caveat}" for caveat in caveats(written, first, names)]
    return Judged(records, np.where(badness > 0, badness, np.nan), found, headline)


def _texts(bart: BARTHubInterface, pairs: Pairs) -> tuple[list[str], list[Sequence[str]]]:
    sources: Any = pairs.sources
    targets: Any = pairs.targets
    if isinstance(sources, TokenStore):
        sources = _decoded(sources, bart.text.for_sources)
    if isinstance(targets, TokenStore):
        targets = [[text] for text in _decoded(targets, bart.text)]
    return list(sources), list(targets)


def _decoded(store: TokenStore, encoder: TextEncoder) -> list[str]:
    check_symbols(store, encoder)
    end = encoder.dictionary.eos_index
    rows = (store[i] for i in range(len(store)))
    return [encoder.decode([int(i) for i in row if i != end]) for row in rows]


# --- Files ----------------------------------------------------------------------------------------


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """JSON lines."""
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text("".join(lines), encoding="utf-8")


def worst(judged: Judged, count: int) -> list[dict[str, Any]]:
    """The rows that are furthest from right, the worst first."""
    order = np.argsort(-np.nan_to_num(judged.badness, nan=-np.inf), kind="stable")
    return [judged.records[i] for i in order if not np.isnan(judged.badness[i])][:count]


def confusion_figure(counts: np.ndarray, labels: Sequence[str]) -> Any:
    """The matplotlib figure of a confusion matrix: shares of each true class, with the counts.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "the confusion matrix needs matplotlib: pip install 'bart_hk[train]', or --no-plot"
        ) from None
    size = max(3.5, 0.6 * len(labels) + 2)
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    places = range(len(labels))
    axes.set_xticks(places, labels, rotation=45, ha="right")
    axes.set_yticks(places, labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(labels) <= 30:
        for true in places:
            for predicted in places:
                color = "white" if shares[true, predicted] > 0.5 else "black"
                text = str(int(counts[true, predicted]))
                axes.text(predicted, true, text, ha="center", va="center", color=color)
    return figure
