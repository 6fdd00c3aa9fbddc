"""Tagging: files, places, the loss by hand, entities, and the hub's labels."""

import json

import jax
import numpy as np
import pytest

from bart_hk.data.readers import DataError
from bart_hk.hub import BARTHubInterface
from bart_hk.model import BART, ClassificationHead
from bart_hk.tasks.tagging import entities, entity_f1, read_tagged
from bart_hk.tasks.token_classification import (
    TokenClassification,
    TokenClassificationConfig,
    TokenClassificationCriterionConfig,
)
from tests.parameters import random_params
from tests.tasks.tiny import ENCODER, MODEL

CONLL = """-DOCSTART- -X- O O

aa NN B-NP B-PER
bb NN I-NP I-PER
ccx VB O O

dd NN B-NP B-LOC
. . O O
"""


def make(tmp_path, content=CONLL, valid=None, **options):
    (tmp_path / "train.txt").write_text(content)
    if valid is not None:
        (tmp_path / "dev.txt").write_text(valid)
    config = TokenClassificationConfig(data=str(tmp_path), **options)
    return TokenClassification(config, TokenClassificationCriterionConfig())


def test_the_formats_give_the_same_sentences(tmp_path):
    (tmp_path / "a.txt").write_text(CONLL)
    found = read_tagged(tmp_path / "a.txt")
    assert [s.words for s in found] == [("aa", "bb", "ccx"), ("dd", ".")]
    assert [s.labels for s in found] == [("B-PER", "I-PER", "O"), ("B-LOC", "O")]
    assert [s.line for s in found] == [3, 7]
    assert read_tagged(tmp_path / "a.txt", label_column=1)[1].labels == ("NN", ".")
    records = [{"tokens": s.words, "ner_tags": s.labels} for s in found]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for end in (".tsv", ".csv.gz"):
        with pytest.raises(DataError, match=r"is a table; words and labels are read from .jsonl"):
            read_tagged(tmp_path / f"a{end}")
    numbered = TokenClassificationConfig(train=str(tmp_path / "n.jsonl"))
    (tmp_path / "n.jsonl").write_text('{"tokens": ["a", "b", "c"], "ner_tags": [10, 2, 0]}\n')
    task = TokenClassification(numbered, TokenClassificationCriterionConfig())
    assert task.labels == ["0", "2", "10"]
    again = read_tagged(tmp_path / "a.jsonl")
    assert [(s.words, s.labels) for s in again] == [(s.words, s.labels) for s in found]


def test_targets_stand_at_the_first_token_of_each_word(tmp_path):
    task = make(tmp_path)
    task.encode(ENCODER, MODEL)
    assert task.labels == ["B-LOC", "B-PER", "I-PER", "O"]
    row = task.train.rows[0].tolist()
    assert row == [0, *ENCODER.encode("aa bb ccx"), 2]
    assert len(ENCODER.encode(" ccx")) > 1
    batch = task.train.batch(np.array([0]), length=12, count=2)
    second = 1 + len(ENCODER.encode("aa"))
    third = second + len(ENCODER.encode(" bb"))
    expected = {1: 1, second: 2, third: 3}
    assert batch["targets"][0].tolist() == [expected.get(i, -1) for i in range(12)]
    assert (batch["targets"][1] == -1).all()


def test_the_loss_the_metrics_and_the_hub(tmp_path):
    task = make(tmp_path, valid=CONLL)
    task.encode(ENCODER, MODEL)
    bart = BART(MODEL.replace(dropout=0.0))
    tree = task.init(bart, random_params(MODEL, 0.4), jax.random.key(1), {})
    tree["head"]["out_proj"]["w"] = tree["head"]["out_proj"]["w"] * 20
    batch = task.train.batch(np.arange(2), length=16, count=3)
    loss, sums = task.loss(bart, tree, None, batch)
    expected, predicted = 0.0, []
    for number, row in enumerate(task.train.rows):
        encoded = bart.encode(tree["model"], row[None])
        features = bart.decode(tree["model"], np.roll(row, 1)[None], encoded).features[0]
        logits = ClassificationHead(MODEL, 4).apply(tree["head"], features)
        logp = np.asarray(jax.nn.log_softmax(logits), np.float64)
        places, targets = task.train.places[number], task.train.targets[number]
        expected -= logp[places, targets].sum()
        predicted.append([task.labels[i] for i in logp[places].argmax(1)])
    assert float(loss) == pytest.approx(expected, rel=1e-5) and int(sums["count"]) == 5
    outputs = {k: np.asarray(v)[:2] for k, v in task.predict(bart, tree, batch).items()}
    found = task.metrics(outputs)
    labels = [sentence.labels for sentence in task.valid.sentences]
    right = sum(
        a == b for p, t in zip(predicted, labels, strict=True) for a, b in zip(p, t, strict=True)
    )
    assert found["loss"] == pytest.approx(expected / 5, rel=1e-5)
    assert found["accuracy"] == pytest.approx(20 * right)
    assert found["f1"] == pytest.approx(100 * entity_f1(predicted, labels))
    params, heads = task.parts(tree)
    hub = BARTHubInterface(bart.config, params, ENCODER, heads)
    for sentence, mine in zip(task.train.sentences, predicted, strict=True):
        assert hub.tag(sentence.words) == list(zip(sentence.words, mine, strict=True))
    # A restored head in another order keeps it, and the targets follow.
    head = heads["token_classification_head"]
    head.labels = ["O", "I-PER", "B-PER", "B-LOC"]
    task.init(bart, params, jax.random.key(2), heads)
    assert task.labels == head.labels and task.train.targets[0].tolist() == [2, 1, 0]
    other = make(tmp_path, labels=sorted(head.labels))  # ours would be another
    with pytest.raises(DataError, match="are in another order than those of the restored head"):
        other.init(bart, params, jax.random.key(2), heads)
    with pytest.raises(ValueError, match="words take more than 20 tokens; give fewer"):
        hub.tag(["aa"] * 40)
    with pytest.raises(ValueError, match="give the list of a sentence's words"):
        hub.tag("aa bb")


def test_words_that_do_not_fit_are_wrong(tmp_path, caplog):
    caplog.set_level("INFO")
    task = make(tmp_path, valid=CONLL, max_positions=4)
    task.encode(ENCODER, MODEL)
    assert "words beyond 4 tokens are left out" in caplog.text
    classes = np.full((2, 20), task.labels.index("B-PER"))
    found = task.metrics({"classes": classes, "loss": np.array([1.0, 1.0])})
    read = [len(places) for places in task.valid.places]
    assert sum(read) < 5 and found["accuracy"] == pytest.approx(20)
    assert found["loss"] == pytest.approx(2 / sum(read))


def test_entities_are_conllevals():
    assert entities(["B-A", "I-A", "O", "I-B", "B-B", "I-A"]) == {
        *(("A", 0, 1), ("B", 3, 3), ("B", 4, 4), ("A", 5, 5))
    }
    assert entities(["O", "O"]) == set()
    assert entity_f1([["B-A", "I-A", "O"]], [["B-A", "I-A", "I-A"]]) == 0
    assert entity_f1([["B-A", "O", "B-B"]], [["B-A", "O", "O"]]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"content": "aa X\nbb\n"}, "line 2: 'bb' has no word in column 0 and label in column -1"),
        ({"content": "\n\n"}, "has no sentence"),
        ({"content": "aa X\nbb O Y\n"}, "line 2: 3 columns where the lines above have 2"),
        ({"content": "# sent_id = 1\naa X\n"}, "line 1: a comment, as in CoNLL-U; remove such"),
        (
            {"label_column": 0},
            "has no word in column 0 and label in column 0; see task.word_column",
        ),
        ({"content": "aa X\nbb X\n"}, "every word has the label 'X'; two classes at least"),
        ({"content": "aa X\nbb X\n", "labels": ["O", "X"]}, "every word has the label 'X'; two"),
        (
            {"valid": "aa B-ORG\n"},
            "dev.txt, the sentence of line 1: label 'B-ORG' is not in .*train.*; correct it, or na",
        ),
        ({"labels": ["O", "O"]}, "task.labels has 'O' twice"),
        ({"labels": ["O", "X"]}, "label 'B-PER' is not in task.labels, which has O, X; correct it"),
    ],
)
def test_bad_input_is_found_before_anything_else(tmp_path, arguments, message):
    with pytest.raises(DataError, match=message) as error:
        make(tmp_path, **arguments)
    assert "\n" not in str(error.value)


def test_bad_json(tmp_path):
    path = tmp_path / "a.jsonl"
    for content, message in (
        ('{"tokens": ["a"], "labels": ["x", "y"]}', "line 1: 1 words and 2 labels"),
        ('{"tokens": ["a"]}', "line 1: there is no list labels or ner_tags"),
        ("[" * 100000, "line 1: not JSON"),
        ('{"tokens": ["a"], "labels": [null]}', "line 1: labels has null, which is no string"),
        ('{"tokens": ["a"], "labels": [["x"]]}', "line 1: labels has ."),
        ('{"tokens": ["a", " "], "labels": ["x", "y"]}', "a word or a label is empty"),
    ):
        path.write_text(content + "\n")
        with pytest.raises(DataError, match=message):
            read_tagged(path)
    with pytest.raises(DataError, match="has no train.txt, train.conll or train.jsonl"):
        TokenClassification(
            TokenClassificationConfig(data=str(tmp_path)), TokenClassificationCriterionConfig()
        )
