"""The facts about data sets, on small ones of ours in the published layouts.

Models that are as good as published pass, models that are a little worse do not."""

import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bart_hk.checkpoint.weights import WEIGHTS
from bart_hk.hub import load
from tests.hub.conftest import shared, text, tiny_params  # noqa: F401
from tests.published import data, test_published

# --- GLUE -----------------------------------------------------------------------------------------

HEADERS = {  # of the files as they are published
    "MNLI": "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "SST-2": "sentence\tlabel",
    "MRPC": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "CoLA": None,
    "STS-B": "\t".join(
        "index genre filename year old_index source1 source2 sentence1 sentence2 score".split()
    ),
}


def write_glue(folder: Path, task: str, labels: list[Any]) -> None:
    lines = [HEADERS[task]] if HEADERS[task] else []
    for n, label in enumerate(labels):
        if task == "CoLA":
            fields = ["gj04", str(label), "*", f"A {n}"]
        else:
            words = {"sentence1": f'A "{n}', "#1 String": f'A "{n}', "question1": f'A "{n}'}
            words |= {"question": f'A "{n}', "sentence": f"B {n}" if task == "QNLI" else f'A "{n}'}
            words |= {"sentence2": f"B {n}", "#2 String": f"B {n}", "question2": f"B {n}"}
            words |= dict.fromkeys(("gold_label", "label", "is_duplicate", "Quality"), str(label))
            words |= {"score": str(label)}
            fields = [words.get(name.strip("\ufeff"), "-") for name in HEADERS[task].split("\t")]
        lines.append("\t".join(fields))
    if task == "QQP":
        lines.append("7\t1\t2\tcut short")
    (folder / task).mkdir(parents=True)
    (folder / task / data.GLUE[task][0]).write_text("\n".join(lines) + "\n", encoding="utf-8")


def classifier(answers: list[np.ndarray], labels: list[str] | None = None) -> Any:
    """A model that gives these logits, in the order of the rows."""
    left = iter(answers)
    head = types.SimpleNamespace(labels=labels)
    return types.SimpleNamespace(
        heads={"head": head},
        encode=lambda texts, truncate: texts,
        predict=lambda name, rows, return_logits: np.array([next(left) for _ in rows]),
    )


def one_hot(classes: list[int], count: int) -> list[np.ndarray]:
    return list(np.eye(count)[classes])


@pytest.mark.parametrize("task", [task for task in data.GLUE if task not in ("CoLA", "STS-B")])
def test_glue_accuracy(tmp_path, task):
    *_, labels, metric = data.GLUE[task]
    assert metric == "accuracy"
    rng, n = np.random.default_rng(0), 1000
    targets = rng.integers(0, len(labels), n)
    write_glue(tmp_path, task, [labels[i] for i in targets])
    rows = data.glue_rows(tmp_path, task)
    assert len(rows) == n and rows[3][1] == labels[targets[3]]
    assert rows[3][0] == (('A "3', "B 3") if len(data.GLUE[task][1]) == 2 else ('A "3',))

    def check(wrong: int, names: list[str] | None = None) -> None:
        found = targets.copy()
        found[:wrong] = (found[:wrong] + 1) % len(labels)
        if names:
            found = np.array([names.index(labels[i]) for i in found])
        data.is_as_good_at_glue(classifier(one_hot(found, len(labels)), names), rows, task)

    allowed = round(10 * (100 - data.GLUE_RESULTS[task]))  # of 1000 rows
    check(allowed)
    check(0)
    check(allowed, list(labels[::-1]))  # a head that names its classes in another order
    for wrong in (allowed + 15, n):
        with pytest.raises(AssertionError):
            check(wrong)


def test_cola(tmp_path):
    targets = np.arange(1000) % 2
    write_glue(tmp_path, "CoLA", list(targets))
    rows = data.glue_rows(tmp_path, "CoLA")
    assert len(rows) == 1000 and rows[5] == (("A 5",), "1")

    def check(wrong: int) -> None:
        found = np.where(np.arange(1000) < wrong, 1 - targets, targets)
        data.is_as_good_at_glue(classifier(one_hot(found, 2)), rows, "CoLA")

    check(186)  # Matthews' correlation is 1 - 2 * share of errors here: 62.8 %
    for wrong in (200, 372, 1000):
        with pytest.raises(AssertionError):
            check(wrong)
    with pytest.raises(AssertionError):  # 90 % right, and nothing known
        write_glue(tmp_path / "all", "CoLA", [int(n % 10 > 0) for n in range(1000)])
        every = data.glue_rows(tmp_path / "all", "CoLA")
        data.is_as_good_at_glue(classifier(one_hot([1] * 1000, 2)), every, "CoLA")


def test_stsb(tmp_path):
    rng = np.random.default_rng(1)
    targets, noise = rng.uniform(0, 5, 2000), rng.standard_normal(2000)
    write_glue(tmp_path, "STS-B", list(targets))
    rows = data.glue_rows(tmp_path, "STS-B")

    def check(spread: float) -> None:
        found = (targets - 2.5) / 2.5 + spread * noise  # Pearson minds neither scale nor shift
        data.is_as_good_at_glue(classifier(list(found[:, None])), rows, "STS-B")

    check(0.25)
    for spread in (0.3, 1.0, -100.0):
        with pytest.raises(AssertionError):
            check(spread)


# --- SQuAD ----------------------------------------------------------------------------------------


def test_the_official_metrics():
    assert data.normalised("The  Eiffel-Tower, a tower!") == "eiffeltower tower"
    assert data.exact("the tower.", ["a Tower", "x"]) == 1 and data.exact("towers", ["tower"]) == 0
    assert data.f1("the big tower", ["tower", "big big tower"]) == pytest.approx(0.8)
    assert data.f1("", [""]) == 1 and data.f1("x", [""]) == 0 and data.f1("", ["x"]) == 0


def test_squads_layout(tmp_path):
    asked = [
        {"question": "Who?", "answers": [{"text": "Ann"}, {"text": "the Ann"}]},
        {"question": "Where?", "answers": [], "is_impossible": True},
    ]
    content = {"data": [{"paragraphs": [{"context": "Ann sat.", "qas": asked}]}]}
    (tmp_path / "dev.json").write_text(json.dumps(content))
    assert data.squad_questions(tmp_path / "dev.json") == [
        ("Who?", "Ann sat.", ["Ann", "the Ann"]),
        ("Where?", "Ann sat.", [""]),
    ]


def reader(bart: Any, answers: dict[str, str]) -> tuple[Any, Any]:
    """A model whose features say where the answer to a question lies, and the layer for them."""

    def features(ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids)
        question = next(q for q in answers if list(ids[: len(row(q))]) == row(q))
        rows = np.zeros((1, len(ids), 2))
        wanted, begin = bart.text.encode(answers[question]), len(row(question)) + 1
        if not wanted:
            rows[0, 0] = 9
            return rows
        at = next(i for i in range(begin, len(ids)) if list(ids[i : i + len(wanted)]) == wanted)
        rows[0, at, 0] = rows[0, at + len(wanted) - 1, 1] = 5
        # Ends before their begin, and spans of a question's own words, are no answers.
        rows[0, 1, 0] = rows[0, 2, 1] = 20
        rows[0, at - 1 if at > begin else at, 1] += 1
        return rows

    def row(question: str) -> list[int]:
        return [int(i) for i in bart.encode(question)]

    stand_in = types.SimpleNamespace(
        encode=bart.encode, decode=bart.decode, extract_features=features
    )
    return stand_in, (np.eye(2), np.zeros(2))


CONTEXT = "Ann sat on the old mat."


@pytest.mark.parametrize("task", data.SQUAD_FILES)
def test_squad(shared, task):  # noqa: F811
    few = [(f"Where does {n} sit?", CONTEXT, [" on the old mat"]) for n in "abcdefghijklmnop"]
    if task == "squad2":
        few[:4] = [(question, CONTEXT, [""]) for question, _, _ in few[:4]]
    right = {question: answers[0] for question, _, answers in few}
    data.answers_questions(*reader(shared, right), few, task)
    halves = {q: " on the" if n in (0, 5, 9, 11) else right[q] for n, q in enumerate(right)}
    others = dict.fromkeys(right, " sat")
    for wrong in (halves, others):
        with pytest.raises(AssertionError):
            data.answers_questions(*reader(shared, wrong), few, task)
    if task == "squad2":  # an answer where there is none
        with pytest.raises(AssertionError):
            every = dict.fromkeys((question for question, _, _ in few[:4]), " sat")
            data.answers_questions(*reader(shared, right | every), few, task)


def with_layer(folder: Path, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adds a question answerer's last layer to a saved model, and gives it."""
    bias = np.zeros(2, np.float32)
    layer = {"qa_outputs.weight": weight, "qa_outputs.bias": bias}
    save_file({**load_file(folder / WEIGHTS), **layer}, folder / WEIGHTS)
    return weight, bias


def test_the_layer_of_a_question_answerer(tmp_path, shared):  # noqa: F811
    """A BartForQuestionAnswering is loaded as a trunk; its last layer is read beside it."""
    shared.save(tmp_path)
    width = shared.config.encoder_embed_dim
    weight = np.arange(2 * width, dtype=np.float32).reshape(2, width)
    layer = with_layer(tmp_path, weight)
    for found, expected in zip(data.output_layer(tmp_path), layer, strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.warns(UserWarning, match="qa_outputs"):
        bart = load(tmp_path)
    assert data.answer(bart, layer, "Who?", CONTEXT, False) in CONTEXT


# --- ROUGE ----------------------------------------------------------------------------------------


def summariser(bart: Any, summaries: list[str], asked: list[Any]) -> Any:
    left = iter(summaries)

    def generate(rows: Any, **options: Any) -> Any:
        asked.append(options)
        return [[{"tokens": bart.encode(next(left))}] for _ in rows]

    return types.SimpleNamespace(encode=bart.encode, decode=bart.decode, generate=generate)


@pytest.mark.parametrize("name", data.SUMMARIES)
def test_rouge_as_published(shared, tmp_path, name):  # noqa: F811
    (tmp_path / name).mkdir()
    texts = [f"A document of {n} words." for n in range(70)]
    (tmp_path / name / "test.source").write_text("\n".join(texts) + "\n")
    (tmp_path / name / "test.target").write_text("\n".join(f"{n} words." for n in range(70)) + "\n")
    source, target = data.documents(tmp_path, name)
    assert source == texts and len(target) == 70
    asked: list[Any] = []

    def check(*scores: float) -> None:
        def score(found: Any, expected: Any) -> Any:
            assert found == [f"Of {n}." for n in range(70)] and expected is target
            return scores

        bart = summariser(shared, [f"Of {n}." for n in range(70)], asked)
        data.summarises_a_test_set(bart, source, target, name, score)

    published = data.SUMMARIES[name][3][0]
    check(*published)
    beam = {"cnn_dm": 4, "xsum": 6}[name]
    assert asked[0]["beam"] == beam and asked[0]["no_repeat_ngram_size"] == 3
    for place in range(3):
        for change in (-0.8, 0.8):
            wrong = list(published)
            wrong[place] += change
            with pytest.raises(AssertionError):
                check(*wrong)
    (tmp_path / name / "test.target").write_text("one\n")
    with pytest.raises(ValueError, match="70 documents, 1 summaries"):
        data.documents(tmp_path, name)


def test_sentences():
    assert data.sentences(" One. Two! Three?  Four 1.5 five.") == (
        "One.\nTwo!\nThree?\nFour 1.5 five."
    )


def test_rouge():
    found = data.rouge(["The cat sat. It slept."], ["It slept. The cat sat."])
    assert found[0] == pytest.approx(100) and found[2] == pytest.approx(100)
    assert found[1] == pytest.approx(75)  # of four pairs of words three
    assert data.rouge(["a dog"], ["the cat"]) == (0, 0, 0)
    assert data.rouge(["cats sleeping"], ["cat sleeps"])[0] == pytest.approx(100)  # stems


# --- The user's folder ----------------------------------------------------------------------------


def test_what_the_user_brings_is_found(tmp_path, monkeypatch, shared):  # noqa: F811
    """Each check is handed the files and the models that the folder holds."""
    monkeypatch.delenv("BART_HK_DATA", raising=False)
    with pytest.raises(pytest.skip.Exception, match="BART_HK_DATA names no folder"):
        test_published.brought("glue")
    monkeypatch.setenv("BART_HK_DATA", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="there is no .*glue.RTE.dev.tsv"):
        test_published.test_glue("RTE", None)

    asked: list[tuple[str, ...]] = []

    def models(answer: Any) -> Any:
        return lambda names: asked.append(names) or [answer]

    for task, name in (("RTE", str(tmp_path / "models" / "RTE")), ("MNLI", "bart.large.mnli")):
        labels = data.GLUE[task][3]
        write_glue(tmp_path / "glue", task, [labels[0]] * 9)
        (tmp_path / "models" / "RTE").mkdir(parents=True, exist_ok=True)
        test_published.test_glue(task, models(classifier(one_hot([0] * 9, len(labels)))))
        with pytest.raises(AssertionError):
            test_published.test_glue(task, models(classifier(one_hot([1] * 9, len(labels)))))
        assert asked.pop() == (name,)

    (tmp_path / "squad").mkdir()
    about = {"context": CONTEXT, "qas": [{"question": "Who?", "answers": [{"text": "Ann"}]}]}
    content = json.dumps({"data": [{"paragraphs": [about]}]})
    (tmp_path / "squad" / "dev-v1.1.json").write_text(content)
    shared.save(tmp_path / "models" / "squad1")
    with_layer(tmp_path / "models" / "squad1", np.eye(2, dtype=np.float32))
    stand_in, _ = reader(shared, {"Who?": "Ann"})
    test_published.test_squad("squad1", models(stand_in))
    stand_in, _ = reader(shared, {"Who?": " sat"})
    with pytest.raises(AssertionError):
        test_published.test_squad("squad1", models(stand_in))
    assert asked[-1] == (str(tmp_path / "models" / "squad1"),)

    (tmp_path / "xsum").mkdir()
    for side in ("source", "target"):
        (tmp_path / "xsum" / f"test.{side}").write_text("One two three.\n")
    with pytest.raises(AssertionError):  # too good to be bart.large.xsum
        test_published.test_rouge("xsum", models(summariser(shared, ["One two three."], [])))
    assert asked[-1] == ("bart.large.xsum",)
