"""`bart-hk-evaluate MODEL DATA`: how good a model is on labelled data, and where it is wrong.

With a head the data are what its task was trained on: a table of texts and labels, of contexts and
options, words with their tags (CoNLL or JSON lines), or questions in SQuAD's format. Without one,
or with --texts, they are a table of sources and targets, or with --targets lines (NAME.source has
NAME.target beside it) or fairseq's stores, and the model writes texts. In OUTPUT it leaves
metrics.json, predictions.jsonl, worst.jsonl and, of classes, confusion.png.

    bart-hk-evaluate checkpoints dev.tsv
    bart-hk-evaluate checkpoints GLUE/RTE/dev.tsv --glue rte
    bart-hk-evaluate tagger dev.conll
    bart-hk-evaluate bart.large.cnn test.jsonl --preset cnn --output cnn
    bart-hk-evaluate translator test.en --targets test.de
    bart-hk-evaluate translator DATA/test.en-de.en.bin --targets DATA/test.en-de.de.bin
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.checkpoint import files
from bart_hk.cli import commands, judging, judging_parts
from bart_hk.cli.judging_parts import ANSWERING, RANKING, SENTENCES, TAGGING, TASKS
from bart_hk.cli.option_flags import (
    PRESET_HELP,
    PRESET_NAMES,
    add_option_flags,
    preset_options,
)
from bart_hk.generation.options import GenerationOptions
from bart_hk.hub import BARTHubInterface, load
from bart_hk.tasks import text_metrics
from bart_hk.tasks.bootstrap import intervals
from bart_hk.tasks.glue import GLUE, GlueTask, glue_task
from bart_hk.training.config import TrainConfig

_PROGRAM = "bart-hk-evaluate"
# The seed is the bootstrap's; the rest asks for more than one text, or for more than a flag.
_LEFT_OUT = ("seed", "nbest", "print_alignment", "lm_weight", "constraints")
# Which flags say something to which kind of model; the rest, and --head, to all.
_TEXTS = "texts"
_SEARCH = (name for name in GenerationOptions.__dataclass_fields__ if name not in _LEFT_OUT)
_FLAGS = {
    SENTENCES: ("task", "glue", "text_columns", "label_column", "labels", "label_separator"),
    RANKING: ("task", "label_column", "context_column", "option_columns", "first_label"),
    TAGGING: ("task", "label_column", "word_column"),
    ANSWERING: ("task",),
    _TEXTS: ("texts", "targets", "source_column", "target_column", "metrics", "preset", *_SEARCH),
}


def _parser() -> argparse.ArgumentParser:
    parser = commands.parser(_PROGRAM, __doc__)
    parser.add_argument("data", type=Path, help="a .tsv, .csv or .jsonl file, .gz or .xz or plain")
    parser.add_argument("-o", "--output", type=Path, help="a folder (default: evaluation-DATA)")
    parser.add_argument("--samples", type=int, default=1000, help="of the bootstrap; 0: none")
    parser.add_argument("--seed", type=int, default=1, help="of the bootstrap (default 1)")
    parser.add_argument("--worst", type=int, default=20, metavar="N", help="rows in worst.jsonl")
    parser.add_argument("--no-plot", action="store_true", help="no confusion.png")
    heads = parser.add_argument_group("heads")
    heads.add_argument("--head", help="its name; may be left out where there is one")
    heads.add_argument("--task", choices=TASKS, help="of the head, where that is not known")
    heads.add_argument("--glue", metavar="TASK", help=f"an official file of {', '.join(GLUE)}")
    heads.add_argument("--text-columns", nargs="+", metavar="NAME", help="one or two")
    heads.add_argument("--label-column", metavar="NAME", help="of words a number, -1 the last")
    heads.add_argument("--labels", nargs="+", help="names of the head's classes, in its order")
    heads.add_argument("--label-separator", help="of several labels of a row (default ,)")
    heads.add_argument("--context-column", metavar="NAME", help="of options")
    heads.add_argument("--option-columns", nargs="+", metavar="NAME")
    heads.add_argument("--first-label", type=int, help="the first option's number (default 0)")
    heads.add_argument("--word-column", type=int, help="of words and tags (default 0)")
    texts = parser.add_argument_group("texts")
    texts.add_argument("--texts", action="store_true", help="write texts, though there is a head")
    texts.add_argument("--targets", type=Path, metavar="FILE", help="where DATA is no table")
    texts.add_argument("--source-column", metavar="NAME")
    texts.add_argument("--target-column", metavar="NAME")
    texts.add_argument("--metrics", nargs="+", choices=text_metrics.NAMES, help="(default: all)")
    texts.add_argument("--preset", choices=PRESET_NAMES, help=PRESET_HELP)
    add_option_flags(parser.add_argument_group("search"), leave_out=_LEFT_OUT)
    return parser


def evaluate(arguments: argparse.Namespace) -> list[str]:
    """Judges and writes; gives the lines to print.

    Raises:
        ValueError, OSError, ImportError: something given is wrong, or cannot be read or written.
    """
    for name in ("samples", "worst"):
        if getattr(arguments, name) < 0:
            raise ValueError(f"--{name} {getattr(arguments, name)} must not be negative")
    glue = glue_task(arguments.glue) if arguments.glue else None
    output = arguments.output or Path(_output(arguments.data))
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; name a folder")
    _options(arguments)  # are well, before anything is loaded
    for path in filter(None, (arguments.data, arguments.targets)):
        if not path.is_file():
            what = "is a folder; name a file" if path.is_dir() else "does not exist"
            raise ValueError(f"{path} {what}")
    bart = load(arguments.model, dtype=arguments.dtype)
    judged = _judged(bart, arguments, glue, _options(arguments, bart))
    commands.report_cut_rows(bart)
    found = judged.metrics(np.arange(judged.rows))
    ends = intervals(judged.metrics, judged.rows, arguments.samples, seed=arguments.seed)
    figure = None
    if judged.confusion is not None and not arguments.no_plot:
        figure = judging.confusion_figure(judged.confusion, judged.labels)
    about: dict[str, Any] = {
        "model": arguments.model,
        "data": str(arguments.data),
        "rows": judged.rows,
        "metrics": {
            name: {"value": value, **dict(zip(("low", "high"), ends.get(name, ()), strict=False))}
            for name, value in found.items()
        },
        "notes": judged.headline,
    }
    if judged.confusion is not None:
        about["labels"] = list(judged.labels)
        about["confusion"] = judged.confusion.tolist()
    with files.replacing(output) as staging:
        files.write_json(staging / "metrics.json", about)
        judging.write_lines(staging / "predictions.jsonl", judged.records)
        judging.write_lines(staging / "worst.jsonl", judging.worst(judged, arguments.worst))
        if figure is not None:
            figure.savefig(staging / "confusion.png", dpi=110)
    width = max(map(len, found))
    lines = [f"{judged.rows} rows of {arguments.data}"]
    for name, value in found.items():
        between = f"   95 % of {arguments.samples} resamplings: " if name in ends else ""
        bounds = "{:.2f} to {:.2f}".format(*ends[name]) if name in ends else ""
        lines.append(f"{name:{width}}  {value:6.2f}{between}{bounds}")
    return [*lines, *judged.headline, f"written to {output}"]


def evaluate_run(
    save_dir: Path, config: TrainConfig, labelled_files: Sequence[tuple[Path, ...]]
) -> list[str]:
    """Judges what a run has trained on its validation files, in `save_dir`; as `evaluate`.

    Nothing is done where `common.evaluate` does not ask for it.
    """
    task = _asked_of(config)
    if task is None:
        return []
    # The rest of how a file is read is stored with the model.
    glue = config.task.glue if task == SENTENCES else None
    flags = ["--glue", glue] if glue else []
    lines = []
    for data, *targets in labelled_files:
        places = [str(save_dir), str(data), f"--output={save_dir / _output(data)}"]
        places += [f"--targets={path}" for path in targets]
        lines += evaluate(_parser().parse_args([*places, *flags]))
    return lines


def check_packages(config: TrainConfig) -> None:
    """Raises ImportError, before a run, for what `evaluate_run` would miss after it."""
    if _asked_of(config) == _TEXTS:
        text_metrics.TextMetrics(text_metrics.NAMES)


def _asked_of(config: TrainConfig) -> str | None:
    """Which task's judgement a run ends with, if with one."""
    task = config.task._name if config.task._name in TASKS else _TEXTS
    asked = config.common.evaluate
    return task if asked or (asked is None and task != _TEXTS) else None


def _output(data: Path) -> str:
    return f"evaluation-{data.name.partition('.')[0]}"


def _judged(
    bart: BARTHubInterface,
    arguments: argparse.Namespace,
    glue: GlueTask | None,
    options: dict[str, Any],
) -> judging.Judged:
    head, data = _head(bart, arguments), arguments.data
    task = judging_parts.task_of(bart, head, arguments.task) if head else _TEXTS
    _check_flags(bart, head, task, arguments)
    if head is None:
        return judging.judge_texts(
            bart,
            data,
            options,
            arguments.metrics or text_metrics.NAMES,
            source_column=arguments.source_column,
            target_column=arguments.target_column,
            targets_file=arguments.targets,
        )
    if task == RANKING:
        names = ("context_column", "option_columns", "label_column", "first_label")
        return judging_parts.judge_ranking(bart, head, data, _given(arguments, names))
    if task == TAGGING:
        given = _given(arguments, ("word_column", "label_column"))
        try:
            columns = {name: int(column) for name, column in given.items()}
        except ValueError:
            raise ValueError(
                f"--label-column {arguments.label_column} of words is a number, -1 for the last"
            ) from None
        return judging_parts.judge_tags(bart, head, data, columns)
    if task == ANSWERING:
        return judging_parts.judge_answers(bart, head, data)
    return judging.judge_head(
        bart,
        head,
        data,
        text_columns=arguments.text_columns,
        label_column=arguments.label_column,
        labels=arguments.labels,
        label_separator=arguments.label_separator,
        glue=glue,
    )


def _given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _check_flags(
    bart: BARTHubInterface, name: str | None, task: str, arguments: argparse.Namespace
) -> None:
    """Raises ValueError for a flag that does nothing for this model."""
    used, what = set(_FLAGS[task]), "the writing of texts"
    if name is not None:
        head, what = bart.heads[name], f"the head {name!r} ({task})"
        used -= {"labels"} if head.regression else set()
        used -= set() if head.multi_label else {"label_separator"}
    known = (flag for flags in _FLAGS.values() for flag in flags)
    commands.refuse_flags(arguments, (flag for flag in known if flag not in used), what)


def _head(bart: BARTHubInterface, arguments: argparse.Namespace) -> str | None:
    """The head to judge, or None for texts."""
    if arguments.texts:
        if arguments.head:
            raise ValueError("--texts and --head exclude each other")
        return None
    return judging.head_name(bart, arguments.head, ", or --texts")


def _options(arguments: argparse.Namespace, bart: Any = None) -> dict[str, Any]:
    names = GenerationOptions.__dataclass_fields__
    given = {name: value for name, value in vars(arguments).items() if name in names}
    given.pop("seed", None)  # the bootstrap's
    options = {**preset_options(arguments.preset, bart), **given}
    GenerationOptions.from_kwargs(**options)
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The command; gives its exit code: 0, or 2 with one line on standard error."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("bart_hk.tasks").setLevel(logging.INFO)  # how many rows are cut
    try:
        lines = evaluate(arguments)
    except (OSError, ValueError, KeyError, ImportError) as error:
        return commands.complain(_PROGRAM, error)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
