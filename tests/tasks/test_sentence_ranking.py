"""Multiple choice: frames, labels, the loss by hand, and the hub's answer."""

import jax
import numpy as np
import pytest

from bart_hk.data.readers import DataError
from bart_hk.hub import BARTHubInterface
from bart_hk.model import BART
from bart_hk.tasks.sentence_ranking import (
    SentenceRanking,
    SentenceRankingConfig,
    SentenceRankingCriterionConfig,
)
from tests.parameters import random_params
from tests.tasks.tiny import ENCODER, MODEL

TABLE = "question\tchoice1\tchoice2\tchoice3\tlabel\naa\tbb\tcc dd\tee\t2\nff\tgg hh\taa\tbb\t0\n"


def make(tmp_path, table=TABLE, valid=None, **options):
    (tmp_path / "train.tsv").write_text(table)
    if valid is not None:
        (tmp_path / "valid.tsv").write_text(valid)
        options["valid"] = str(tmp_path / "valid.tsv")
    config = SentenceRankingConfig(train=str(tmp_path / "train.tsv"), **options)
    return SentenceRanking(config, SentenceRankingCriterionConfig())


def test_every_option_is_a_row_before_its_context(tmp_path):
    task = make(tmp_path)
    task.encode(ENCODER, MODEL)
    batch = task.train.batch(np.array([0]), length=20, count=2)
    assert batch["src_tokens"].shape == (6, 20)
    for i, option in enumerate(("bb", "cc dd", "ee")):
        row = [0, *ENCODER.encode(option), 2, *ENCODER.encode("aa"), 2]
        assert batch["src_tokens"][i].tolist() == row + [1] * (20 - len(row))
        assert batch["prev_output_tokens"][i, : len(row)].tolist() == [2, *row[:-1]]
    assert batch["targets"].tolist() == [2, 0] and batch["mask"].tolist() == [True, False]


def test_the_loss_and_the_hub(tmp_path):
    task = make(tmp_path, valid=TABLE)
    task.encode(ENCODER, MODEL)
    bart = BART(MODEL.replace(dropout=0.0))
    tree = task.init(bart, random_params(MODEL, 0.4), jax.random.key(1), {})
    tree["head"]["out_proj"]["w"] = tree["head"]["out_proj"]["w"] * 20
    batch = task.train.batch(np.arange(2), length=20, count=3)
    loss, sums = task.loss(bart, tree, None, batch)
    params, heads = task.parts(tree)
    hub = BARTHubInterface(bart.config, params, ENCODER, heads)
    answers = [hub.rank(["bb", "cc dd", "ee"], "aa"), hub.rank(["gg hh", "aa", "bb"], "ff")]
    of_right = [dict(answers[0])["ee"], dict(answers[1])["gg hh"]]
    assert float(loss) == pytest.approx(-np.log(of_right).sum(), rel=1e-4)
    assert int(sums["count"]) == 2
    assert int(sums["tokens"]) == sum(len(option) for row in task.train.rows for option in row)
    outputs = task.predict(bart, tree, task.valid.batch(np.arange(2), 20, 2))
    found = task.metrics({"logits": np.asarray(outputs["logits"])})
    assert found["loss"] == pytest.approx(float(loss) / 2, rel=1e-4)
    right = [answers[0][0][0] == "ee", answers[1][0][0] == "gg hh"]
    assert found["accuracy"] == 50 * sum(right)
    assert [p for _, p in answers[0]] == sorted((p for _, p in answers[0]), reverse=True)
    # The stored head goes on being trained; one of other classes does not.
    again = task.init(bart, params, jax.random.key(2), heads)
    assert again["head"] is heads["sentence_classification_head"].params
    with pytest.raises(ValueError, match="give a list of two texts at least"):
        hub.rank(["one"])
    hub.register_classification_head("classes", num_classes=2)
    with pytest.raises(ValueError, match="rank needs a head of one output"):
        hub.rank(["a", "b"], head="classes")


def test_labels_by_number_letter_and_name(tmp_path):
    for labels, options in (
        (("0", "2"), {}),
        (("1", "3"), {"first_label": 1}),
        (("A", "c"), {}),
        (("choice1", "choice3"), {}),
    ):
        table = "choice1\tchoice2\tchoice3\tlabel\n" + "".join(f"a\tb\tc\t{x}\n" for x in labels)
        task = make(tmp_path, table, **options)
        assert task._targets[0].tolist() == [0, 2]
    task.encode(ENCODER, MODEL)
    assert task.train.rows[0][1].tolist() == [0, *ENCODER.encode("b"), 2]  # without a context


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": TABLE + "a\tb\tc\td\t3\n"}, "line 4: label '3' names none of the 3 options; it"),
        ({"table": "question\ta\tlabel\nx\ty\t0\n"}, "name those with the options, two at least"),
        ({"table": "choice1\tchoice2\tx\na\tb\t0\n"}, "name the one with the right option in task"),
        ({"num_classes": 4}, "task.num_classes=4, but there are 3 options: choice1, choice2"),
        ({"table": TABLE + "a\t \tc\td\t0\n"}, "line 4: 'choice1' is empty; remove the line"),
        (
            {"option_columns": ["choice1", "choise2"]},
            "no column 'choise2', .*did you mean 'choice2",
        ),
        ({"context_column": "text"}, "no column 'text'"),
        ({"option_columns": ["choice1", "choice1"]}, "the column 'choice1' is used twice; give"),
        ({"label_column": "choice2"}, "the column 'choice2' is used twice"),
        ({"first_label": 2}, "task.first_label must be 0 or 1"),
        ({"valid": "question\tchoice1\tlabel\na\tb\t0\n"}, "valid.tsv has no column 'choice2'"),
        ({"table": TABLE.splitlines()[0] + "\n"}, "has a header and no rows"),
    ],
)
def test_bad_input_is_found_before_anything_else(tmp_path, arguments, message):
    with pytest.raises(DataError, match=message) as error:
        make(tmp_path, **arguments)
    assert "\n" not in str(error.value)


def test_an_option_that_is_a_list(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"choice1": "a", "choice2": ["b"], "label": 0}\n')
    with pytest.raises(DataError, match="line 1: 'choice2' is a list, and a text is wanted"):
        SentenceRanking(SentenceRankingConfig(train=str(path)), SentenceRankingCriterionConfig())


def test_long_rows_are_cut_and_keep_their_ends(tmp_path):
    words = "aa bb cc dd ee " * 8
    task = make(tmp_path, f"question\tchoice1\tchoice2\tlabel\n{words}\tff\t{words}\t0\n")
    task.encode(ENCODER, MODEL)
    for row in task.train.rows[0]:
        assert len(row) == 20 and row[-1] == 2 and (row == 2).sum() == 2
    task = make(tmp_path, max_option_length=1)
    task.encode(ENCODER, MODEL)
    assert task.train.rows[0][1].tolist()[:3] == [0, ENCODER.encode("cc dd")[0], 2]
    with pytest.raises(DataError, match="max_positions=3 leaves no room"):
        make(tmp_path, max_positions=3).encode(ENCODER, MODEL)
