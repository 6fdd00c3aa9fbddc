"""`bart-hk-evaluate` and `bart-hk-predict` with heads that choose, tag and answer."""

import io
import json
import sys

import numpy as np
import pytest

import bart_hk
from bart_hk.cli import evaluate, predict
from bart_hk.hub import BARTHubInterface
from bart_hk.tasks.squad import exact_match, f1
from bart_hk.tasks.tagging import entity_f1
from tests.cli.test_evaluate import CONFIG, ENCODER, WORDS
from tests.parameters import random_params

TAGS = ["B-X", "I-X", "O"]
TAGGER, ANSWERER = "token_classification_head", "question_answering_head"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    bart = BARTHubInterface(CONFIG, random_params(CONFIG, 0.3), ENCODER)
    bart.register_classification_head("choice", num_classes=1)
    bart.register_classification_head(TAGGER, labels=TAGS)
    bart.register_classification_head(ANSWERER, labels=["start", "end"])
    for head in bart.heads.values():
        head.params["out_proj"]["w"] = head.params["out_proj"]["w"] * 60
    bart.save(folder)
    return folder


@pytest.fixture(scope="module")
def bart(model):
    return bart_hk.load(model)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    assert evaluate.main([str(argument) for argument in arguments]) == 0
    folder = arguments[1].parent / f"evaluation-{arguments[1].stem}"
    about = json.loads((folder / "metrics.json").read_text())
    found = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("predictions", "worst")
    }
    return about, found["predictions"], found["worst"]


def sentences(count, seed=0, longest=7):
    rng = np.random.default_rng(seed)
    return [list(map(str, rng.choice(WORDS, rng.integers(2, longest)))) for _ in range(count)]


def test_options(model, bart, here, capsys):
    rows = [[" ".join(words) for words in sentences(4, seed)] for seed in range(20)]
    labels = np.random.default_rng(1).integers(0, 3, 20)
    lines = [
        f"{a}\t{b}\t{c}\t{d}\t{label}" for (a, b, c, d), label in zip(rows, labels, strict=True)
    ]
    table = here / "dev.tsv"
    table.write_text("question\tchoice1\tchoice2\tchoice3\tlabel\n" + "\n".join(lines) + "\n")
    about, predictions, worst = run(model, table, "--head", "choice", "--samples", 100)
    ranked = [bart.rank(row[1:], row[0], "choice") for row in rows[:4]]
    for record, row, answers in zip(predictions, rows, ranked, strict=False):
        best = f"choice{row.index(answers[0][0])}"
        assert record["prediction"] == best and record["question"] == row[0]
        assert record["probabilities"][best] == pytest.approx(answers[0][1], abs=1e-5)
    right = [record["prediction"] == record["label"] for record in predictions]
    entry = about["metrics"]["accuracy"]
    assert 0 < sum(right) < 20 and entry["value"] == pytest.approx(5 * sum(right))
    assert entry["low"] < entry["value"] < entry["high"]
    assert len(worst) == 20 - sum(right) and worst[0]["prediction"] != worst[0]["label"]
    lost = [record["probabilities"][record["label"]] for record in worst]
    assert lost == sorted(lost)
    table.write_text("a\tb\tc\tlabel\nx\ty\tz\t0\n")
    assert evaluate.main([str(model), str(table), "--head", "choice"]) == 2
    assert "two at least, in --option-columns" in capsys.readouterr().err


def test_tags(model, bart, here, capsys):
    made = [*sentences(15, 3), WORDS * 4]  # the last does not fit
    draw = np.random.default_rng(2)
    labels = [list(draw.choice(TAGS, len(words))) for words in made]
    path = here / "dev.conll"
    path.write_text(
        "\n\n".join(
            "\n".join(f"{w} {t}" for w, t in zip(*pair, strict=True))
            for pair in zip(made, labels, strict=True)
        )
    )
    about, predictions, worst = run(model, path, "--head", TAGGER, "--samples", 100)
    assert "rows cut to the 32 tokens that are read: 1\n" in capsys.readouterr().err
    for record, words in zip(predictions[:3], made, strict=False):
        assert record["prediction"] == [label for _, label in bart.tag(words, TAGGER)]
    assert predictions[15]["prediction"][-1] == "O"
    predicted = [record["prediction"] for record in predictions]
    pairs = [pair for row in zip(labels, predicted, strict=True) for pair in zip(*row, strict=True)]
    metrics = {name: entry["value"] for name, entry in about["metrics"].items()}
    assert metrics["accuracy"] == pytest.approx(100 * np.mean([a == b for a, b in pairs]))
    assert metrics["f1"] == pytest.approx(100 * entity_f1(predicted, labels))
    assert 0 < metrics["f1"] < 100 and about["metrics"]["f1"]["low"] < metrics["f1"]
    assert np.sum(about["confusion"]) == len(pairs) and about["labels"] == TAGS
    wrong = [record["wrong"] for record in worst]
    assert wrong == sorted(wrong, reverse=True) and min(wrong) > 0
    path.write_text("film B-Z\n")
    assert evaluate.main([str(model), str(path), "--head", TAGGER]) == 2
    assert "label 'B-Z' is not one of the head's: B-X, I-X, O" in capsys.readouterr().err
    assert evaluate.main([str(model), str(path), "--head", TAGGER, "--label-column", "x"]) == 2
    assert "--label-column x of words is a number" in capsys.readouterr().err


def test_files_are_read_as_the_training_file_was(here):
    """By the same columns, unless a flag names others; a table without them by the usual names."""
    one = BARTHubInterface(CONFIG, random_params(CONFIG, 0.3), ENCODER)
    one.register_classification_head("choice", num_classes=1)
    read = {"context_column": "on", "option_columns": ["x", "y"], "label_column": "right"}
    one.extras["sentence_ranking"] = {**read, "first_label": 1}
    one.save(here / "ranker")
    (here / "dev.tsv").write_text("on\tx\ty\tright\tlabel\nplot\tfilm\tgood\t2\tx\n")
    (record,) = run(here / "ranker", here / "dev.tsv", "--samples", 0)[1]
    assert record["label"] == "y" and record["on"] == "plot"
    (record,) = run(here / "ranker", here / "dev.tsv", "--samples", 0, "--label-column", "label")[1]
    assert record["label"] == "x"
    (here / "dev.tsv").write_text("question\toption1\toption2\tlabel\nplot\tfilm\tgood\t0\n")
    (record,) = run(here / "ranker", here / "dev.tsv", "--samples", 0)[1]
    assert record["label"] == "option1" and record["question"] == "plot"


def test_words_are_read_as_the_training_file_was(here):
    one = BARTHubInterface(CONFIG, random_params(CONFIG, 0.3), ENCODER)
    one.register_classification_head(TAGGER, labels=TAGS)
    one.extras["token_classification"] = {"word_column": 1, "label_column": 0}
    one.save(here / "tagger")
    (here / "dev.conll").write_text("B-X film NN\nO plot NN\n")
    for flags, labels, words in (
        ((), ["B-X", "O"], ["film", "plot"]),
        (("--word-column", 2), ["B-X", "O"], ["NN", "NN"]),
    ):
        (record,) = run(here / "tagger", here / "dev.conll", "--samples", 0, *flags)[1]
        assert record["labels"] == labels and record["words"] == words


def test_answers(model, bart, here, capsys):
    contexts = [" ".join(words) for words in sentences(12, 5, longest=30)]
    asked = ["a film", "the plot of the actor"] * 6
    entries = []
    for i, (question, context) in enumerate(zip(asked, contexts, strict=True)):
        text = context.split()[-1]
        answers = [{"text": text, "answer_start": context.rindex(text)}] * 2
        entry = {"id": f"q{i}", "question": question, "answers": answers}
        entries.append({"context": context, "qas": [entry]})
    path = here / "dev.json"
    path.write_text(json.dumps({"data": [{"paragraphs": entries}]}))
    about, predictions, worst = run(model, path, "--head", ANSWERER, "--samples", 50)
    for i in (0, 5):
        answer, score = bart.answer(asked[i], contexts[i], ANSWERER)
        assert predictions[i]["prediction"] == answer
        assert predictions[i]["score"] == pytest.approx(score, abs=1e-3)
    found = [(record["prediction"], record["answers"]) for record in predictions]
    metrics = {name: entry["value"] for name, entry in about["metrics"].items()}
    assert metrics["f1"] == pytest.approx(100 * np.mean([f1(*pair) for pair in found]))
    exact = np.mean([exact_match(*pair) for pair in found])
    assert metrics["exact_match"] == pytest.approx(100 * exact)
    assert worst and worst[0]["f1"] == min(record["f1"] for record in predictions)
    assert evaluate.main([str(model), str(path), "--head", "choice"]) == 2
    assert "the head 'choice'" not in capsys.readouterr().err  # it takes the file for a table
    arguments = [str(model), str(path), "--head", "choice", "--task", "question_answering"]
    assert evaluate.main(arguments) == 2
    assert "the head 'choice' does not answer questions; see --task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("choice", "film\tgood\tbad", lambda b: b.rank(["good", "bad"], "film", "choice")[0]),
        (TAGGER, "good film", lambda b: [" ".join(t for _, t in b.tag(["good", "film"], TAGGER))]),
        (ANSWERER, "a\tfine film plot", lambda b: b.answer("a", "fine film plot", ANSWERER)),
    ],
)
def test_predict(model, bart, monkeypatch, capsys, name, line, expected):
    def asked(*arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{line}\n".encode())))
        assert predict.main([str(model), "--head", name, *arguments]) == 0
        return capsys.readouterr().out

    text, *number = expected(bart)
    fields = asked().rstrip("\n").split("\t")
    assert fields[0] == text
    if number:
        assert float(fields[1]) == pytest.approx(number[0], abs=1e-3)
    values = json.loads(asked("--json")).values()
    assert text in values or text.split() in values


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("choice", "film\tgood", "a line is a context and two options at least"),
        (ANSWERER, "film", "a line is a question, a tab and its context"),
    ],
)
def test_lines_that_lack_something(model, monkeypatch, capsys, name, line, message):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{line}\n".encode())))
    assert predict.main([str(model), "--head", name]) == 2
    assert message in capsys.readouterr().err
