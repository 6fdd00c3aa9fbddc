"""What `bart-hk-evaluate` finds out about heads that choose among options, tag words or answer
questions. Shapes: N rows, O options, C classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.cli.judging import Judged, as_trained
from bart_hk.data.readers import DataError, read_table
from bart_hk.hub import BARTHubInterface
from bart_hk.tasks import sentence_ranking, token_classification
from bart_hk.tasks.question_answering import LABELS, READING
from bart_hk.tasks.sentence_ranking import (
    SentenceRanking,
    SentenceRankingConfig,
    SentenceRankingCriterionConfig,
)
from bart_hk.tasks.squad import exact_match, f1, read_squad
from bart_hk.tasks.tagging import entities, read_tagged

SENTENCES, RANKING = "sentence_prediction", "sentence_ranking"
TAGGING, ANSWERING = "token_classification", "question_answering"
TASKS = (SENTENCES, RANKING, TAGGING, ANSWERING)


def task_of(bart: BARTHubInterface, name: str, asked: str | None = None) -> str:
    """What a head was trained for: what is asked for, or is stored with it, or follows from it.

    Raises:
        ValueError: a head of this kind cannot be what is asked for.
    """
    head = bart.heads[name]
    scores = head.module.num_classes == 1 and not head.regression and not head.multi_label
    if asked == RANKING and not scores:
        raise ValueError(f"the head {name!r} does not score options; see --task")
    if asked == ANSWERING and head.labels != LABELS:
        raise ValueError(f"the head {name!r} does not answer questions; see --task")
    if asked == TAGGING and (head.regression or head.multi_label or not head.labels):
        raise ValueError(f"the head {name!r} has no names of tags; see --task")
    if asked == SENTENCES and scores:
        raise ValueError(f"the head {name!r} has a single score and no classes; see --task")
    if asked is not None:
        return asked
    stored = bart.extras.get("training", {}).get("task")
    if stored in TASKS and len(bart.heads) == 1:
        return stored
    if head.labels == LABELS:
        return ANSWERING
    if scores:
        return RANKING
    return TAGGING if name == "token_classification_head" else SENTENCES


def judge_ranking(
    bart: BARTHubInterface, name: str, path: Path, columns: Mapping[str, Any]
) -> Judged:
    """Of a head that scores options, on a table with contexts, options and the right one.

    Args:
        columns: those of SentenceRankingConfig that are given, and first_label. The others are as
            in training, where the table has all of those, or found by their usual names.

    Raises:
        DataError: the file is not as it should be.
    """
    learned, header = as_trained(bart, sentence_ranking.READING), read_table(path).header
    used = [learned.get("context_column"), learned.get("label_column")]
    if not {*filter(None, used), *learned.get("option_columns", [])} <= set(header):
        learned = {}
    options = SentenceRankingConfig(**{**learned, **columns})
    options.train, options.max_positions = str(path), min(bart.max_positions)
    task = SentenceRanking(options, SentenceRankingCriterionConfig())
    task.encode(bart.text, bart.config)
    rows, targets, table = task.train.rows, task.train.targets, task.train.table
    flat = [option for row in rows for option in row]
    scores = np.asarray(bart.predict(name, flat, return_logits=True), np.float64)
    scores = scores.reshape(len(rows), -1)
    probabilities = np.exp(scores - scores.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    predicted = probabilities.argmax(1)
    columns = {column: table.column(column) for column in task.text_columns}
    records: list[dict[str, Any]] = []
    for i, (line, fields) in enumerate(table.records):
        texts = {column: fields[at] for column, at in columns.items()}
        records.append(
            {
                "line": line,
                **texts,
                "label": task.option_columns[targets[i]],
                "prediction": task.option_columns[predicted[i]],
                "probabilities": {
                    column: round(float(p), 6)
                    for column, p in zip(task.option_columns, probabilities[i], strict=True)
                },
            }
        )
    right = predicted == targets
    share = np.bincount(targets).max() / len(targets)
    return Judged(
        records,
        np.where(right, np.nan, 1 - probabilities[np.arange(len(targets)), targets]),
        lambda rows: {"accuracy": 100 * float(right[rows].mean())},
        [f"the most frequent place would be right in {100 * share:.1f} %"],
    )


def judge_tags(bart: BARTHubInterface, name: str, path: Path, columns: Mapping[str, int]) -> Judged:
    """Of a head that tags words, on CoNLL's files or JSON lines; the metrics' rows are sentences.

    Words that do not fit the model are wrong, as in training: their label is "O" or the first.
    `columns`: word_column and label_column, or those of training, or the first and the last.

    Raises:
        DataError: the file is not as it should be, or has labels that the head does not.
    """
    trained = as_trained(bart, token_classification.READING)
    columns = {"word_column": 0, "label_column": -1, **trained, **columns}
    sentences = read_tagged(path, columns["word_column"], columns["label_column"])
    names = list(bart.heads[name].labels or ())
    for sentence in sentences:
        for label in sentence.labels:
            if label not in names:
                raise DataError(
                    f"{path}, the sentence of line {sentence.line}: label {label!r} is not one of "
                    f"the head's: {', '.join(names)}"
                )
    other = "O" if "O" in names else names[0]
    tagged = bart.tag([sentence.words for sentence in sentences], name, truncate=True)
    bart.rows_cut += sum(len(a) < len(b.words) for a, b in zip(tagged, sentences, strict=True))
    records: list[dict[str, Any]] = []
    sums = np.zeros((len(sentences), 4), np.int64)  # right, words, shared entities, all entities
    confusion = np.zeros((len(names), len(names)), np.int64)
    for i, (sentence, pairs) in enumerate(zip(sentences, tagged, strict=True)):
        found = [label for _, label in pairs]
        found += [other] * (len(sentence.words) - len(found))
        for right, mine in zip(sentence.labels, found, strict=True):
            confusion[names.index(right), names.index(mine)] += 1
        here, there = entities(found), entities(sentence.labels)
        same = sum(a == b for a, b in zip(found, sentence.labels, strict=True))
        sums[i] = same, len(found), len(here & there), len(here) + len(there)
        records.append(
            {
                "line": sentence.line,
                "words": list(sentence.words),
                "labels": list(sentence.labels),
                "prediction": found,
                "wrong": len(found) - same,
            }
        )
    in_entities = any(label.startswith(("B-", "I-")) for label in names)

    def metrics(rows: np.ndarray) -> dict[str, float]:
        right, words, shared, size = (int(total) for total in sums[rows].sum(0))
        accuracy = {"accuracy": 100 * right / words}
        return accuracy | ({"f1": 200 * shared / size if size else 0.0} if in_entities else {})

    wrong = (sums[:, 1] - sums[:, 0]).astype(float)
    share = confusion.sum(1).max() / confusion.sum()
    return Judged(
        records,
        np.where(wrong > 0, wrong, np.nan),
        metrics,
        [f"the most frequent label would be right in {100 * share:.1f} % of the words"],
        confusion,
        tuple(names),
    )


def judge_answers(bart: BARTHubInterface, name: str, path: Path) -> Judged:
    """Of a head that answers questions, on a file in SQuAD's format. Whether it may say that there
    is no answer is as it was trained; where that is not known, as the file has such questions.

    Raises:
        DataError: the file is not as it should be.
    """
    questions = read_squad(path)
    found = bart.answer(
        [q.question for q in questions],
        [q.context for q in questions],
        name,
        may_be_none=None if READING in bart.extras else any(not q.answers for q in questions),
    )
    records: list[dict[str, Any]] = []
    values = np.zeros((len(questions), 2))
    for i, (question, (answer, score)) in enumerate(zip(questions, found, strict=True)):
        references = [text for text, _ in question.answers]
        values[i] = 100 * exact_match(answer, references), 100 * f1(answer, references)
        records.append(
            {
                "id": question.id,
                "question": question.question,
                "context": question.context,
                "answers": list(dict.fromkeys(references)),
                "prediction": answer,
                "score": round(score, 4),
                "exact_match": bool(values[i, 0] == 100),
                "f1": round(float(values[i, 1]), 2),
            }
        )
    badness = 100 - values[:, 1]

    def metrics(rows: np.ndarray) -> dict[str, float]:
        exact, overlap = values[rows].mean(0)
        return {"exact_match": float(exact), "f1": float(overlap)}

    return Judged(records, np.where(badness > 0, badness, np.nan), metrics, [])


def answer_lines(
    bart: BARTHubInterface, name: str, task: str, lines: Sequence[str], may_be_none: bool = False
) -> list[dict[str, Any]]:
    """What `bart-hk-predict` says of lines: "label" and "probability" of the best option of
    `context<TAB>option<TAB>option...`, "labels" of the "words" of a line with spaces, or "answer"
    and "score" of `question<TAB>context`.

    Raises:
        ValueError: a line is not as it should be.
    """
    if task == TAGGING:
        tagged = bart.tag([line.split() for line in lines], name)
        pairs = [list(zip(*row, strict=True)) for row in tagged]
        return [{"words": list(words), "labels": list(labels)} for words, labels in pairs]
    columns = [line.split("\t") for line in lines]
    if task == ANSWERING:
        for fields in columns:
            if len(fields) != 2:
                raise ValueError(f"{_shown(fields)}: a line is a question, a tab and its context")
        asked, contexts = zip(*columns, strict=True)
        found = bart.answer(list(asked), list(contexts), name, may_be_none=may_be_none or None)
        return [{"answer": answer, "score": score} for answer, score in found]
    for fields in columns:
        if len(fields) < 3:
            raise ValueError(f"{_shown(fields)}: a line is a context and two options at least")
    ranked = [bart.rank(options, context, name) for context, *options in columns]
    return [
        {"label": best[0][0], "probability": best[0][1], "probabilities": dict(best)}
        for best in ranked
    ]


def _shown(fields: Sequence[str]) -> str:
    return repr("\t".join(fields)[:60])
