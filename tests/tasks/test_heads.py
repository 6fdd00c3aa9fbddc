"""A restored head that gives something else than the data ask for is refused, by every task."""

import types

import jax
import numpy as np
import pytest

from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.data.readers import DataError
from bart_hk.model import BART, ClassificationHead
from bart_hk.tasks.question_answering import QuestionAnswering
from bart_hk.tasks.sentence_prediction import (
    SentencePrediction,
    SentencePredictionConfig,
    SentencePredictionCriterionConfig,
)
from bart_hk.tasks.sentence_ranking import SentenceRanking
from bart_hk.tasks.token_classification import TokenClassification
from tests.tasks.tiny import MODEL


def head(classes, labels=None, inner=8, **kind):
    shapes = {"dense": (8, inner), "out_proj": (inner, classes)}
    params = {name: {"w": np.ones(s), "b": np.ones(s[1])} for name, s in shapes.items()}
    return HeadFiles(params, labels, **kind)


def task_of(kind, config=None, criterion=None, **attributes):
    """A task as it is when `init` is called, without files."""
    task = object.__new__(kind)
    task.train = task.valid = None
    for name, value in {"config": config, "criterion": criterion, **attributes}.items():
        setattr(task, name, value)
    return task


def sentences(labels=("a", "b"), asked=False, regression=False, multi_label=False):
    return task_of(
        SentencePrediction,
        SentencePredictionConfig(multi_label=multi_label),
        SentencePredictionCriterionConfig(classification_head_name="h"),
        labels=list(labels),
        regression=regression,
        _asked_order=asked,
    )


def init(task, found):
    params = {"embed_tokens": {"embeddings": np.ones((2, 8))}}
    return task.init(BART(MODEL), params, jax.random.key(0), {"h": found})


@pytest.mark.parametrize(
    ("task", "found", "message"),
    [
        (sentences(), head(3, ["a", "d", "c"]), "gives the classes a, d, c, and wanted are the c"),
        (sentences(), head(2), "gives 2 classes without names"),
        (sentences(asked=True), head(3), "gives 3 classes without names"),
        (sentences(), head(1, regression=True), "gives numbers, and wanted are the classes a, b:"),
        (sentences(regression=True), head(2, ["a", "b"]), "classes a, b, and wanted are numbers"),
        (sentences(multi_label=True), head(2, ["a", "b"]), "and wanted are any of the classes a"),
        (sentences(), head(2, ["a", "b"], multi_label=True), "gives any of the classes a, b, and"),
    ],
)
def test_of_sentences(task, found, message):
    with pytest.raises(DataError, match=message) as error:
        init(task, found)
    assert str(error.value).endswith(
        "name another head in criterion.classification_head_name, or have a new one in its place "
        "with checkpoint.reset_heads=true"
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("task", "found"),
    [
        (sentences([], regression=True), head(3, ["a", "b", "c"])),
        (sentences(multi_label=True), head(3, ["a", "b", "c"])),
        (sentences(), head(3, ["a", "b", "c"], multi_label=True)),
    ],
)
def test_a_head_of_another_kind_may_not_stay(task, found):
    with pytest.raises(DataError, match="with checkpoint.reset_heads=true$"):
        init(task, found)


def test_a_head_of_more_classes_may_stay():
    found = head(3, ["a", "c", "b"])
    with pytest.raises(DataError, match=r"with task.labels=\[a,c,b\]$"):
        init(sentences(), found)
    assert init(sentences(["a", "c", "b"], asked=True), found)["head"] is found.params


@pytest.mark.parametrize(
    ("kind", "option", "found", "message"),
    [
        (SentenceRanking, "ranking_head_name", head(2, ["a", "b"]), "wanted are scores of options"),
        (SentenceRanking, "ranking_head_name", head(1, regression=True), "gives numbers, and"),
        (TokenClassification, "head_name", head(2, ["B", "O"]), "classes B, O, and wanted are the"),
        (QuestionAnswering, "head_name", head(2, ["O", "B"]), "and wanted are start and end"),
        (QuestionAnswering, "head_name", head(1), "gives a single score, and wanted"),
    ],
)
def test_of_other_tasks(kind, option, found, message):
    criterion = types.SimpleNamespace(**{option: "h"})
    task = task_of(kind, criterion=criterion, labels=["a", "b"])
    with pytest.raises(DataError, match=message) as error:
        init(task, found)
    assert f"name another head in criterion.{option}, or have a new one" in str(error.value)


def test_a_head_without_names_serves_where_their_order_is_given():
    found = head(2)
    assert init(sentences(asked=True), found)["head"] is found.params


def test_a_head_of_another_inner_width_is_used_as_it_is():
    narrow = ClassificationHead.of(MODEL, head(3, inner=5).params)
    assert narrow.inner_dim == 5 and narrow.num_classes == 3
    drawn = narrow.init(jax.random.key(0))
    assert {n: v["w"].shape for n, v in drawn.items()} == {"dense": (8, 5), "out_proj": (5, 3)}
