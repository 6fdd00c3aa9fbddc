"""SQuAD's files and its metrics: exact match and F1 of answers.

Source: Rajpurkar et al. 2016 and 2018; the official `evaluate-v1.1.py` and `evaluate-v2.0.py`.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bart_hk.data.readers import DataError, parse_json, read_lines

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = set(string.punctuation)


@dataclass(frozen=True)
class Question:
    """A question about a text; `answers` are (text, where it begins), none where there is none."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


def read_squad(path: Path) -> list[Question]:
    """Reads a file of version 1.1 or 2.0, `.gz` and `.xz` unpacked.

    Raises:
        DataError: it is missing or not in SQuAD's format, a question or a text is empty, an answer
            is not where it is said to be, or two questions have the same id.
    """
    content = parse_json(str(path), "\n".join(read_lines(path)))
    questions: dict[str, Question] = {}
    try:
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                context = paragraph["context"]
                for entry in paragraph["qas"]:
                    found = [] if entry.get("is_impossible", False) else entry.get("answers")
                    if found is None:
                        raise DataError(
                            f'{path}, question {entry["id"]}: it has no "answers"; give them, '
                            'or say "is_impossible": true'
                        )
                    answers = tuple((a["text"], a["answer_start"]) for a in found)
                    one = Question(str(entry["id"]), entry["question"], context, answers)
                    _check(path, one)
                    if one.id in questions:
                        raise DataError(f"{path}: two questions have the id {one.id!r}")
                    questions[one.id] = one
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not in SQuAD's format: {error!r}; it is "
            '{"data": [{"paragraphs": [{"context": ..., "qas": [{"id", "question", "answers"}]}]}]}'
        ) from None
    if not questions:
        raise DataError(f"{path} has no question")
    return list(questions.values())


def _check(path: Path, one: Question) -> None:
    for name, text in (("question", one.question), ("context", one.context)):
        if not text.strip():
            raise DataError(f"{path}, question {one.id}: the {name} is empty; leave it out")
    for text, start in one.answers:
        if type(start) is not int:
            raise DataError(
                f"{path}, question {one.id}: answer_start={start!r} is not a whole number, the "
                "place of the answer's first character"
            )
        if start < 0 or one.context[start : start + len(text)] != text or not text:
            there = one.context.find(text) if text else -1
            hint = f"it is at {there}" if there >= 0 else "it is nowhere in the context"
            raise DataError(
                f"{path}, question {one.id}: the answer {text!r} is not at answer_start={start}; "
                f"{hint}: correct it, or leave the question out"
            )


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and double spaces."""
    plain = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1.0 where the answer is one of the references; none of them is the empty answer."""
    return float(any(normalised(answer) == normalised(text) for text in references or [""]))


def f1(answer: str, references: Sequence[str]) -> float:
    """The best F1 of words that answer and reference share."""
    return max(_f1(normalised(answer).split(), normalised(r).split()) for r in references or [""])


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    same = sum((Counter(answer) & Counter(reference)).values())
    return 2 * same / (len(answer) + len(reference))
