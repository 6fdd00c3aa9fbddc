"""`bart-hk-predict MODEL`: what a head says of the texts on standard input, one on every line.

A pair stands on one line with a tab between; so do a context and its options, and a question and
its context; the words that a head tags have spaces between. A line of output has the label and its
probability, where several may hold those above one half, the value (on the scale of the file that
the head was trained on), the tags, or the answer and its score; with --json an object. With
--labels a head that tells entailment (bart.large.mnli's) ranks those. Lines are answered as they
come.

    echo "a fine film" | bart-hk-predict checkpoints
    bart-hk-predict bart.large.mnli --labels sport politics < news.txt
"""

import argparse
import itertools
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from bart_hk.cli import commands
from bart_hk.cli.judging import as_trained, head_name
from bart_hk.cli.judging_parts import ANSWERING, SENTENCES, TASKS, answer_lines, task_of
from bart_hk.hub import BARTHubInterface, load
from bart_hk.hub.zero_shot import HYPOTHESIS, hypotheses
from bart_hk.tasks.sentence_options import READING

_PROGRAM = "bart-hk-predict"
_WINDOW = 256  # lines at once, unless somebody types them


def _parser() -> argparse.ArgumentParser:
    parser = commands.parser(_PROGRAM, __doc__)
    parser.add_argument("--head", help="its name; may be left out where there is one")
    parser.add_argument("--labels", nargs="+", help="classes that nothing was trained for")
    parser.add_argument("--hypothesis-template", help=f"of --labels; default: {HYPOTHESIS}")
    parser.add_argument("--multi-label", action="store_true", help="any of --labels may hold")
    parser.add_argument("--json", action="store_true", help="objects, with every probability")
    parser.add_argument("--task", choices=TASKS, help="of the head, where that is not known")
    parser.add_argument("--may-be-none", action="store_true", help="there may be no answer")
    parser.add_argument("--buffer-size", type=int, help="lines that are read before an answer")
    return parser


def answers(
    bart: BARTHubInterface, texts: Sequence[str], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Of each line the "label" and "probability", or of a head of several the "labels" that hold,
    with all "probabilities"; or "value"; or as of `answer_lines`.

    Raises:
        ValueError: a line is not as it should be.
    """
    if arguments.labels:
        ranked = bart.classify(
            list(texts),
            arguments.head,
            labels=arguments.labels,
            hypothesis_template=arguments.hypothesis_template or HYPOTHESIS,
            multi_label=arguments.multi_label,
        )
        return [_named(pairs) for pairs in ranked]
    if arguments.task != SENTENCES:
        name, none = arguments.head, arguments.may_be_none
        return answer_lines(bart, name, arguments.task, texts, none)
    head = bart.heads[arguments.head]
    items = [tuple(text.split("\t")) for text in texts]
    for text, item in zip(texts, items, strict=True):
        if len(item) > 2 or not all(part.strip() for part in item):
            raise ValueError(f"{text[:60]!r}: a line is a text, or two with a tab between")
    found = bart.predict(arguments.head, bart.encode(items, truncate=True))
    if head.regression:
        scale = as_trained(bart, READING).get("label_divisor", 1.0)
        return [{"value": scale * float(row[0])} for row in found]
    labels = head.labels or [str(i) for i in range(head.module.num_classes)]
    of_rows = ((float(p) for p in row) for row in np.exp(np.asarray(found, np.float64)))
    ranked = [sorted(zip(labels, row, strict=True), key=_worse) for row in of_rows]
    return [_several(row) if head.multi_label else _named(row) for row in ranked]


def _worse(pair: tuple[str, float]) -> float:
    return -pair[1]


def _several(ranked: Sequence[tuple[str, float]]) -> dict[str, Any]:
    return {"labels": [label for label, p in ranked if p > 0.5], "probabilities": dict(ranked)}


def _named(ranked: Sequence[tuple[str, float]]) -> dict[str, Any]:
    label, probability = ranked[0]
    return {"label": label, "probability": probability, "probabilities": dict(ranked)}


def run(arguments: argparse.Namespace, lines: IO[bytes], out: IO[str]) -> None:
    """Answers every line.

    Raises:
        ValueError, KeyError, OSError: the model, the head or a line is not as it should be.
    """
    if arguments.labels:
        commands.refuse_flags(arguments, ("task", "may_be_none"), "--labels")
        hypotheses(arguments.labels, arguments.hypothesis_template or HYPOTHESIS)
    elif arguments.multi_label or arguments.hypothesis_template is not None:
        raise ValueError("--multi-label and --hypothesis-template are for --labels")
    if arguments.buffer_size is not None and arguments.buffer_size < 1:
        raise ValueError(f"--buffer-size {arguments.buffer_size} must be at least 1")
    bart = load(arguments.model, dtype=arguments.dtype)
    if not bart.heads:
        raise ValueError(
            f"{arguments.model} has no classification head; bart-hk-train makes one, and "
            f"bart-hk-generate --path {arguments.model} writes texts"
        )
    arguments.head = head_name(bart, arguments.head)
    if not arguments.labels:
        arguments.task = task_of(bart, arguments.head, arguments.task)
        if arguments.task != ANSWERING:
            what = f"the head {arguments.head!r} ({arguments.task})"
            commands.refuse_flags(arguments, ("may_be_none",), what)
    size = arguments.buffer_size or (1 if sys.stdin.isatty() else _WINDOW)
    for window in _windows(_texts(lines), size):
        for answer in answers(bart, window, arguments):
            out.write(_line(answer, arguments.json))
        out.flush()
    commands.report_cut_rows(bart)


def _texts(lines: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        try:
            text = line.rstrip(b"\r\n").decode()
        except UnicodeDecodeError:
            raise ValueError(f"standard input, line {number}: not UTF-8") from None
        if not text.strip():
            raise ValueError(f"standard input, line {number} is empty; every line is a text")
        yield text


def _windows(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    while window := list(itertools.islice(texts, size)):
        yield window


def _line(answer: dict[str, Any], as_json: bool) -> str:
    if as_json:
        return json.dumps(answer, ensure_ascii=False) + "\n"
    if "labels" in answer:  # of words, or of one text as the data have them
        return (" " if "words" in answer else ",").join(answer["labels"]) + "\n"
    if "answer" in answer:
        return f"{' '.join(answer['answer'].split())}\t{answer['score']:.4f}\n"
    if "value" in answer:
        return f"{answer['value']:.6g}\n"
    return f"{answer['label']}\t{answer['probability']:.4f}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; gives its exit code: 0, or 2 with one line on standard error."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    try:
        run(arguments, sys.stdin.buffer, sys.stdout)
    except BrokenPipeError:
        sys.stderr.close()  # nobody reads on
        return 0
    except (OSError, ValueError, KeyError) as error:
        return commands.complain(_PROGRAM, error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
