"""The options of `bart_hk.tasks.sentence_prediction`, and the files that they name."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bart_hk.data.readers import DataError, Examples
from bart_hk.tasks import binarised, files
from bart_hk.tasks.glue import GlueTask

READING = "sentence_prediction"  # the name of what `reading` gives, in bart_hk.json


@dataclass
class SentencePredictionConfig(files.FilesConfig):
    """Where the examples are and how they are read."""

    _name: str = "sentence_prediction"
    # One of GLUE's tasks in its official files, by name (bart_hk/tasks/glue.py): cola, sst2, mrpc,
    # qqp, stsb, mnli, qnli, rte, wnli (ax has nothing to train on). task.data is GLUE's folder, the
    # task's, or what fairseq's script made of it (RTE-bin); columns, labels and metrics follow.
    glue: str | None = None
    # One or two columns with texts, one with labels; found by their usual names if not given.
    text_columns: list[str] = dataclasses.field(default_factory=list)
    label_column: str | None = None
    # The classes in the order of the head's outputs; sorted, numbers as numbers, if not given.
    labels: list[str] = dataclasses.field(default_factory=list)
    num_classes: int = -1  # checked against the labels found, if positive
    # A row has any number of labels, with the separator between them; in JSON they may be a list.
    multi_label: bool = False
    label_separator: str = ","
    label_divisor: float = 1.0  # of the numbers that a regression learns; STS-B's is 5
    max_positions: int = 512  # longer rows are cut, the longer text first; the last </s> stays
    # In training each token becomes <mask> with this probability, which keeps a small model from
    # knowing its examples by their rare words (word dropout: Iyyer et al. 2015, section 3.2).
    token_dropout: float = 0.0


@dataclass
class SentencePredictionCriterionConfig:
    """What is minimised and reported. Source: fairseq `criterions/sentence_prediction.py`."""

    _name: str = "sentence_prediction"
    classification_head_name: str = "sentence_classification_head"
    regression_target: bool = False  # labels are numbers, the loss is the squared error
    label_smoothing: float = 0.0  # fairseq has none here
    # Of each label, {label: weight}, 1 where it is not named; or "balanced": by how rare it is.
    class_weights: Any = None
    # R-Drop (Wu et al. 2021): every batch passes twice, and the two are to agree. 0: once.
    rdrop_alpha: float = 0.0
    report_mcc: bool = False
    report_acc_and_f1: bool = False  # F1 of class 1 of two, macro-averaged over more
    report_pearson_and_spearman: bool = False


def as_glue(
    glue: GlueTask,
    config: SentencePredictionConfig,
    criterion: SentencePredictionCriterionConfig,
    stores: bool,
) -> tuple[SentencePredictionConfig, SentencePredictionCriterionConfig]:
    """Both, with what the name of a GLUE task says where nothing else was said.

    Args:
        stores: the data are fairseq's stores, whose scores its script has divided already.

    Raises:
        DataError: numbers are asked for, and the task has classes.
    """
    if criterion.regression_target and not glue.regression:
        raise DataError(
            f"task.glue={glue.folder} has classes: leave out criterion.regression_target=true"
        )
    divisor = config.label_divisor
    config = dataclasses.replace(
        config,
        text_columns=list(config.text_columns or glue.text_columns),
        label_column=config.label_column or glue.label_column,
        labels=list(config.labels or glue.labels),
        label_divisor=glue.divisor if divisor == 1 and not stores else divisor,
    )
    asked: dict[str, Any] = dict.fromkeys(glue.reports, True)
    return config, dataclasses.replace(criterion, regression_target=glue.regression, **asked)


def reading(
    config: SentencePredictionConfig,
    criterion: SentencePredictionCriterionConfig,
    examples: Examples | None,
) -> dict[str, Any]:
    """How a training table was read, for reading others as it was: its columns (none where there
    was no table), the numbers' divisor, the labels' separator."""
    found: dict[str, Any] = {}
    if examples is not None:
        found = {"text_columns": list(examples.text_columns), "label_column": examples.label_column}
    if criterion.regression_target:
        found["label_divisor"] = config.label_divisor
    if config.multi_label:
        found["label_separator"] = config.label_separator
    return found


def input_files(
    config: SentencePredictionConfig, glue: GlueTask | None
) -> tuple[Path, Path | None]:
    """The training and validation files.

    Raises:
        DataError: they are not there.
    """
    folder = files.folder_of(config)
    if folder is not None and binarised.is_binarised(folder):
        return binarised.splits(folder)
    if glue is not None and folder is not None:
        return glue.find(folder)
    return files.table_files(config)


def check(config: SentencePredictionConfig, criterion: SentencePredictionCriterionConfig) -> None:
    """Raises DataError for values that make no sense, alone or together."""
    if not 0 <= criterion.label_smoothing < 1:
        raise DataError(f"criterion.label_smoothing={criterion.label_smoothing} must be in [0, 1)")
    if not 0 <= config.token_dropout < 1:
        raise DataError(f"task.token_dropout={config.token_dropout} must be in [0, 1)")
    if criterion.rdrop_alpha < 0:
        raise DataError(f"criterion.rdrop_alpha={criterion.rdrop_alpha} must not be negative")
    if criterion.rdrop_alpha and (criterion.regression_target or config.multi_label):
        raise DataError("criterion.rdrop_alpha compares classes that exclude each other")
    if config.multi_label and criterion.regression_target:
        raise DataError("task.multi_label and criterion.regression_target exclude each other")
    if config.multi_label and (not config.label_separator or criterion.label_smoothing):
        raise DataError("task.multi_label needs a task.label_separator and no label_smoothing")
    if criterion.regression_target:
        for option, does_nothing in (
            ("task.labels", config.labels),
            ("task.num_classes", config.num_classes > 1),  # fairseq's regressions have 1
            ("criterion.label_smoothing", criterion.label_smoothing),
        ):
            if does_nothing:
                raise DataError(f"{option} is for classes; leave out regression_target or {option}")
    elif config.label_divisor != 1:
        raise DataError("task.label_divisor needs criterion.regression_target=true")
    if (
        not config.multi_label
        and config.label_separator != SentencePredictionConfig.label_separator
    ):
        raise DataError("task.label_separator needs task.multi_label=true")
    if not config.label_divisor > 0:
        raise DataError(f"task.label_divisor={config.label_divisor} must be above 0")
