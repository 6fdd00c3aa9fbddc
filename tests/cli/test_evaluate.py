"""`bart-hk-evaluate` and `bart-hk-predict` on a small model with heads."""

import io
import json
import sys
import warnings

import numpy as np
import pytest

import bart_hk
from bart_hk.cli import evaluate, judging, predict
from bart_hk.config import BARTConfig
from bart_hk.hub import BARTHubInterface
from bart_hk.tasks import text_metrics
from bart_hk.text import train_bpe
from tests.parameters import random_params

WORDS = "good bad fine film plot the a of actor scene awful".split()
ENCODER = train_bpe([" ".join(WORDS)] * 2, 300)
CONFIG = BARTConfig(
    vocab_size=len(ENCODER.dictionary),
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=16,
    decoder_ffn_embed_dim=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    max_source_positions=32,
    max_target_positions=32,
)


def texts(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(count)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder with heads of three classes, of several labels, of entailment, a regression."""
    folder = tmp_path_factory.mktemp("model") / "model"
    bart = BARTHubInterface(CONFIG, random_params(CONFIG, 0.3), ENCODER)
    for name, classes, regression in (
        ("mood", ["bad", "good", "mixed"], False),
        ("tags", ["bad", "good", "mixed"], False),
        ("nli", ["contradiction", "neutral", "entailment"], False),
        ("stars", None, True),
    ):
        bart.register_classification_head(name, labels=classes, regression=regression)
        head = bart.heads[name]
        head.params["out_proj"]["w"] = head.params["out_proj"]["w"] * 30
    bart.heads["tags"].multi_label = True
    bart.save(folder)
    return folder


@pytest.fixture(scope="module")
def bart(model):
    return bart_hk.load(model)


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A folder with a model that writes words of ours alone."""
    config = CONFIG.replace(final_logits_bias=True)
    params = random_params(config, 0.3)
    ids = [found for found in ENCODER.encode_batch([f" {w}" for w in WORDS]) if len(found) == 1]
    bias = np.full(config.vocab_size, -100, np.float32)
    bias[[config.eos_token_id, *np.ravel(ids)]] = 0
    params["final_logits_bias"] = {"b": bias}
    folder = tmp_path_factory.mktemp("writer") / "writer"
    BARTHubInterface(config, params, ENCODER).save(folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *arguments):
    code = evaluate.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_classes(model, bart, here, capsys):
    rows = texts(60)
    labels = [str(x) for x in np.random.default_rng(1).choice(["bad", "good", "mixed"], 60)]
    lines = "".join(f"{text}\t{label}\n" for text, label in zip(rows, labels, strict=True))
    (here / "dev.tsv").write_text("text\tlabel\n" + lines)
    out = run(capsys, model, here / "dev.tsv", "--head", "mood", "--samples", 200, "--worst", 5)
    answers = bart.classify(rows, head="mood")
    predicted = [label for label, _ in answers]
    assert len(set(predicted)) > 1
    about = json.loads((here / "evaluation-dev" / "metrics.json").read_text())
    found = {name: entry["value"] for name, entry in about["metrics"].items()}
    pairs = list(zip(labels, predicted, strict=True))
    assert found["accuracy"] == pytest.approx(100 * sum(a == b for a, b in pairs) / 60)
    classes = ["bad", "good", "mixed"]
    each = [
        2 * pairs.count((name, name)) / (labels.count(name) + predicted.count(name))
        for name in classes
    ]
    assert found["f1"] == pytest.approx(100 * sum(each) / 3)
    assert -100 < found["mcc"] < 100
    for entry in about["metrics"].values():
        assert entry["low"] < entry["value"] < entry["high"]
    counts = [[pairs.count((true, answer)) for answer in classes] for true in classes]
    assert about["labels"] == classes and about["confusion"] == counts
    assert counts != np.transpose(counts).tolist()
    assert f"accuracy    {found['accuracy']:6.2f}" in out and "60 rows of" in out
    records = read(here / "evaluation-dev" / "predictions.jsonl")
    assert [record["prediction"] for record in records] == predicted
    assert [record["label"] for record in records] == labels
    assert records[3]["line"] == 5
    # Each is rounded to six places.
    assert sum(records[3]["probabilities"].values()) == pytest.approx(1, abs=2e-6)
    worst = read(here / "evaluation-dev" / "worst.jsonl")
    assert len(worst) == 5 and all(record["prediction"] != record["label"] for record in worst)
    of_label = [record["probabilities"][record["label"]] for record in worst]
    assert of_label == sorted(of_label)
    png = (here / "evaluation-dev" / "confusion.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 2000
    # Other names for the classes, no plot, another folder, no intervals.
    (here / "dev.tsv").write_text("text\tlabel\nfine film\tx\na plot\ty\n")
    arguments = ("--labels", "x", "y", "z", "--no-plot", "--output", here / "o", "--samples", 0)
    run(capsys, model, here / "dev.tsv", "--head", "mood", *arguments)
    assert sorted(p.name for p in (here / "o").iterdir()) == [
        *("metrics.json", "predictions.jsonl", "worst.jsonl")
    ]


def test_the_figure_of_a_confusion_matrix():
    figure = judging.confusion_figure(np.array([[3, 1], [0, 4]]), ["no", "yes"])
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["no", "yes"]
    cells = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    assert cells == {
        **{(0, 0): ("3", "white"), (1, 0): ("1", "black")},
        **{(0, 1): ("0", "black"), (1, 1): ("4", "white")},
    }
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25], [0, 1]]


def test_numbers_and_several_labels(model, bart, here, capsys):
    rows = texts(30)
    values = np.asarray(bart.predict("stars", bart.encode(rows)))[:, 0]
    table = (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    )
    pairs = bart.encode([(row, "film") for row in rows])
    fifths = np.asarray(bart.predict("stars", pairs))[:, 0] * 5 + 0.25
    for i, (row, value) in enumerate(zip(rows, fifths, strict=True)):
        table += f"{i}\tg\tf\t2012\t{i}\tn\tn\t{row}\tfilm\t{value}\n"
    (here / "dev.tsv").write_text(table)
    out = run(capsys, model, here / "dev.tsv", "--head", "stars", "--glue", "stsb", "--samples", 50)
    assert "pearson" in out
    about = json.loads((here / "evaluation-dev/metrics.json").read_text())["metrics"]
    assert about["pearson"]["value"] == pytest.approx(100, abs=1e-2)
    assert about["mean squared error"]["value"] == pytest.approx(0.0625, rel=1e-3)
    assert values.std() > 0

    probabilities = np.exp(np.asarray(bart.predict("tags", bart.encode(rows))))
    names = np.array(["bad", "good", "mixed"])
    lines = "".join(
        json.dumps({"text": row, "label": names[p > 0.5].tolist()}) + "\n"
        for row, p in zip(rows, probabilities, strict=True)
    )
    (here / "tags.jsonl").write_text(lines)
    run(capsys, model, here / "tags.jsonl", "--head", "tags", "--samples", 10)
    about = json.loads((here / "evaluation-tags/metrics.json").read_text())["metrics"]
    assert about["accuracy"]["value"] == about["micro_f1"]["value"] == 100
    assert read(here / "evaluation-tags/worst.jsonl") == []


def test_glues_diagnostic_file(model, bart, here, capsys):
    """As published: four columns of phenomena and one of domains, then the pair and its label."""
    pairs = [(row, "film") for row in texts(40)]
    answers = [label for label, _ in bart.classify(pairs, head="nli")]
    assert len(set(answers)) > 1
    labels = ["neutral", *answers[1:]]
    header = "Lexical Semantics\tPredicate-Argument Structure\tLogic\tKnowledge\tDomain\t"
    rows = "".join(
        f"\t\tNegation;Universal\t\tNews\t{premise}\t{hypothesis}\t{label}\n"
        for (premise, hypothesis), label in zip(pairs, labels, strict=True)
    )
    (here / "diagnostic-full.tsv").write_text(f"{header}Premise\tHypothesis\tLabel\n{rows}")
    run(capsys, model, "diagnostic-full.tsv", "--head", "nli", "--glue", "AX", "--samples", 0)
    about = json.loads((here / "evaluation-diagnostic-full/metrics.json").read_text())["metrics"]
    right = 100 * sum(a == b for a, b in zip(answers, labels, strict=True)) / 40
    assert about["accuracy"]["value"] == pytest.approx(right) and right >= 97.5
    assert about["mcc"]["value"] > 80


def test_texts(writer, here, capsys):
    sources = texts(8)
    kwargs = {"beam": 2, "max_len_b": 9, "no_repeat_ngram_size": 1}
    written = bart_hk.load(writer).sample(sources, **kwargs)
    assert len(set(written)) > 1
    records = [
        {"source": s, "target": [w + " film", "other"]}
        for s, w in zip(sources, written, strict=True)
    ]
    records[0]["target"] = ["nothing like it ."]
    (here / "test.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    options = ("--beam", 2, "--max-len-b", 9, "--no-repeat-ngram-size", 1, "--samples", 100)
    out = run(capsys, writer, here / "test.jsonl", "--texts", *options)
    assert "files2rouge" in out
    found = read(here / "evaluation-test" / "predictions.jsonl")
    assert [record["prediction"] for record in found] == written
    about = json.loads((here / "evaluation-test" / "metrics.json").read_text())["metrics"]
    assert set(about) == {"bleu", "rouge1", "rouge2", "rougeL", "rougeLsum"}
    from sacrebleu.metrics import BLEU

    references = [[r["target"][0] for r in records], [(r["target"] + [None])[1] for r in records]]
    bleu = BLEU()
    assert 20 < about["bleu"]["value"] < 95
    assert about["bleu"]["value"] == pytest.approx(bleu.corpus_score(written, references).score)
    assert f"BLEU: {bleu.get_signature()}\n" in out
    assert about["rouge1"]["low"] <= about["rouge1"]["value"] <= about["rouge1"]["high"]
    assert read(here / "evaluation-test" / "worst.jsonl")[0]["source"] == sources[0]
    # The same from two files of lines.
    (here / "lines.source").write_text("".join(f"{text}\n" for text in sources))
    (here / "lines.target").write_text("".join(f"{r['target'][0]}\n" for r in records))
    out = run(capsys, writer, here / "lines.source", "--texts", *options, "--metrics", "bleu")
    bleu.corpus_score(written, references[:1])
    assert f"BLEU: {bleu.get_signature()}\n" in out
    bleu.corpus_score(written, references[:1] * 2)
    assert text_metrics.settings(["bleu"], [2] * 8) == [f"BLEU: {bleu.get_signature()}"]
    found = read(here / "evaluation-lines" / "predictions.jsonl")
    assert [record["prediction"] for record in found] == written
    for end, name in (("en", "source"), ("de", "target")):
        (here / f"test.{end}").write_text((here / f"lines.{name}").read_text())
    files = (here / "test.en", "--targets", here / "test.de")
    run(capsys, writer, *files, "--texts", *options, "--metrics", "bleu", "--output", here / "two")
    assert read(here / "two" / "predictions.jsonl") == found


def test_a_file_is_read_as_the_training_file_was(here, monkeypatch, capsys):
    """Of several columns with usual names those that were trained on; scores over the divisor."""
    one = BARTHubInterface(CONFIG, random_params(CONFIG, 0.3), ENCODER)
    one.register_classification_head("stars", regression=True)
    one.extras["sentence_prediction"] = {
        **{"text_columns": ["note"], "label_column": "mark", "label_divisor": 5.0}
    }
    notes = texts(3, seed=7)
    lines = "".join(f"film\t1\t{note}\t{5 * i}\n" for i, note in enumerate(notes))
    (here / "dev.tsv").write_text("text\tlabel\tnote\tmark\n" + lines)
    judged = judging.judge_head(one, "stars", here / "dev.tsv")
    values = np.asarray(one.predict("stars", one.encode(notes)))[:, 0]
    assert [r["prediction"] for r in judged.records] == pytest.approx(5 * values, abs=1e-4)
    errors = judged.metrics(np.arange(3))["mean squared error"]
    assert errors == pytest.approx(25 * np.mean((values - np.arange(3)) ** 2), rel=1e-4)
    # So are the values that are printed.
    one.save(here / "scores")
    feed(monkeypatch, "".join(f"{note}\n" for note in notes).encode())
    capsys.readouterr()
    assert predict.main([str(here / "scores")]) == 0
    printed = [float(line) for line in capsys.readouterr().out.split()]
    assert printed == pytest.approx(5 * values, rel=1e-4)
    # A file with other columns is read by the usual names.
    (here / "dev.tsv").write_text("text\tlabel\nfilm\t1\n")
    assert judging.judge_head(one, "stars", here / "dev.tsv").records[0]["text"] == "film"


def test_texts_are_read_as_the_training_table_was(writer, here, capsys):
    """Of its columns, though others have usual names; a table without them by the usual names."""
    bart = bart_hk.load(writer)
    bart.extras["translation"] = {"source_column": "en", "target_column": "de"}
    bart.save(here / "translator")
    (here / "dev.tsv").write_text("source\ten\tde\ttarget\nbad\tfilm\tgood\tawful\n")
    (here / "test.tsv").write_text("source\ttarget\nplot\tscene\n")
    for name, source, target in (("dev", "film", "good"), ("test", "plot", "scene")):
        run(capsys, "translator", f"{name}.tsv", "--max-len-b", "4", "--samples", "0")
        (line,) = (here / f"evaluation-{name}" / "predictions.jsonl").read_text().splitlines()
        assert [json.loads(line)[key] for key in ("source", "target")] == [source, target]


def test_sources_that_are_cut_are_counted(writer, here, capsys):
    (here / "dev.tsv").write_text(f"source\ttarget\n{'film ' * 60}\tgood\nfilm\tbad\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arguments = [str(writer), "dev.tsv", "--max-len-b", "4", "--samples", "0"]
        assert evaluate.main(arguments) == 0
    assert "rows cut to the 32 tokens that are read: 1\n" in capsys.readouterr().err


def test_rows_that_are_cut_are_counted(model, here, capsys, monkeypatch):
    (here / "dev.tsv").write_text(f"text\tlabel\n{'film ' * 60}\tgood\nfilm\tbad\n")
    arguments = [str(model), "dev.tsv", "--head", "mood", "--no-plot", "--samples", "0"]
    assert evaluate.main(arguments) == 0
    assert "rows cut to the 32 tokens that are read: 1\n" in capsys.readouterr().err
    for head in (["--head", "mood"], ["--head", "nli", "--labels", "film", "plot"]):
        feed(monkeypatch, b"film " * 60 + b"\nfilm\n")
        assert predict.main([str(model), *head]) == 0
        assert "rows cut to the 32 tokens that are read: 1\n" in capsys.readouterr().err
        feed(monkeypatch, b"film\n")
        assert predict.main([str(model), *head]) == 0
        assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.tsv",), "none.tsv does not exist"),
        (("dev.tsv",), "say which head with --head, or --texts; there are: mood, nli, stars, tags"),
        (
            ("dev.tsv", "--head", "modo"),
            "there is no head 'modo'; there are: mood, nli, stars, tags",
        ),
        (("dev.tsv", "--head", "mood", "--texts"), "--texts and --head exclude each other"),
        (
            ("dev.tsv", "--head", "mood"),
            "dev.tsv, line 3: label 'bda' is not one of the head's: bad",
        ),
        (
            ("dev.tsv", "--head", "stars"),
            "line 2: label 'good' is not a finite number, which a regression",
        ),
        (
            ("dev.tsv", "--head", "mood", "--labels", "a"),
            "--labels names 1 classes, and the head 'm",
        ),
        (
            ("dev.tsv", "--head", "mood", "--labels", "good", "bad", "mixed"),
            "--labels has 'good' in another place than the head 'mood', which has bad, good",
        ),
        (("dev.tsv", "--head", "mood", "--labels", "a", "a", "b"), "--labels has 'a' twice"),
        ((".",), ". is a folder; name a file"),
        (
            ("dev.tsv", "--head", "mood", "--beam", "3"),
            "--beam does nothing for the head 'mood' (sentence_prediction): leave it out",
        ),
        (("dev.tsv", "--head", "mood", "--first-label", "0"), "--first-label does nothing for the"),
        (("dev.tsv", "--head", "mood", "--label-separator", ";"), "--label-separator does nothing"),
        (("dev.tsv", "--head", "stars", "--labels", "a"), "--labels does nothing for the head 'st"),
        (("dev.tsv", "--texts", "--glue", "rte"), "--glue does nothing for the writing of texts"),
        (("dev.tsv", "--head", "stars", "--glue", "rte"), "--glue RTE has classes, and the head"),
        (
            ("dev.tsv", "--head", "mood", "--task", "sentence_ranking"),
            "the head 'mood' does not score options; see --task",
        ),
        (("dev.tsv", "--head", "mood", "--label-column", "lable"), "no column 'lable'"),
        (("dev.tsv", "--texts"), "name the one with the targets in --target-column"),
        (
            ("test.en.bin", "--texts"),
            "test.en.bin is fairseq's store of one side: name the other's",
        ),
        (
            ("test.en.idx", "--texts", "--targets", "test.de"),
            "one of test.en.idx and test.de is fairseq's store and the other is text",
        ),
        (("dev.tsv", "--glue", "sst3"), "--glue sst3 is not one of cola"),
        (("dev.tsv", "--samples", "-1"), "--samples -1 must not be negative"),
        (("dev.tsv", "--texts", "--beam", "0"), "beam must be at least 1"),
    ],
)
def test_errors_take_one_line(model, here, capsys, arguments, message):
    (here / "dev.tsv").write_text("text\tlabel\ngood film\tgood\nbad film\tbda\n")
    for name in ("test.en.bin", "test.en.idx", "test.de"):
        (here / name).write_text("something\n")
    assert evaluate.main([str(model), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert error.startswith("bart-hk-evaluate: error: ")


@pytest.mark.parametrize(
    ("written", "reference", "said"),
    [
        ("a film .", "a film.", ["the predictions look tokenised"]),
        ("a film.", "a film .", ["the references look tokenised"]),
        ("a film .", "the film .", ["predictions and references look tokenised"]),
        ("a film.", "the film.", []),
        ("привет", "привет, мир", ["leaves out 100 % of the references' letters"]),
        ("schön", "schön groß", ["leaves out 22 % of"]),
        ("今天", "今天很好", ["leaves out 100 % of", "13a, cuts at spaces"]),
    ],
)
def test_texts_whose_metrics_mean_little(written, reference, said):
    lines = text_metrics.caveats([written] * 4, [reference] * 4, ["bleu", "rouge"])
    assert len(lines) == len(said) and all(map(str.__contains__, lines, said)), lines


def feed(monkeypatch, data):
    class Input:
        buffer = io.BytesIO(data)

        @staticmethod
        def isatty():
            return False

    monkeypatch.setattr(sys, "stdin", Input())


def test_predict(model, bart, monkeypatch, capsys):
    lines = [*texts(5), "good film\ta plot"]
    data = "".join(line + "\n" for line in lines).encode()
    inputs = [*lines[:5], ("good film", "a plot")]
    feed(monkeypatch, data)
    assert predict.main([str(model), "--head", "mood", "--buffer-size", "4"]) == 0
    expected = bart.classify(inputs, head="mood")
    out = capsys.readouterr().out.splitlines()
    assert out == [f"{label}\t{p:.4f}" for label, p in expected]
    feed(monkeypatch, data)
    assert predict.main([str(model), "--head", "stars"]) == 0
    values = np.asarray(bart.predict("stars", bart.encode(inputs)))[:, 0]
    np.testing.assert_allclose([float(x) for x in capsys.readouterr().out.split()], values, 1e-4)
    feed(monkeypatch, data)
    assert predict.main([str(model), "--head", "tags"]) == 0
    held = [[label for label, _ in found] for found in bart.classify(inputs, head="tags")]
    assert capsys.readouterr().out.splitlines() == [",".join(labels) for labels in held]
    assert {len(labels) for labels in held} != {1}
    feed(monkeypatch, data)
    assert predict.main([str(model), "--head", "tags", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["labels"] for answer in found] == held and len(found[0]["probabilities"]) == 3
    feed(monkeypatch, data[: data.index(b"good film\ta")])
    arguments = ["--head", "nli", "--labels", "film", "plot", "--json"]
    assert predict.main([str(model), *arguments]) == 0
    ranked = bart.classify(lines[:5], head="nli", labels=["film", "plot"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(answer["probabilities"].items()) for answer in found] == [
        [(label, pytest.approx(p, rel=1e-4)) for label, p in pairs] for pairs in ranked
    ]


@pytest.mark.parametrize(
    ("arguments", "data", "message"),
    [
        (("--head", "mood"), b"a\n\n", "standard input, line 2 is empty"),
        (("--head", "mood"), b"\xff\n", "standard input, line 1: not UTF-8"),
        (("--head", "modo"), b"a\n", "there is no head 'modo'"),
        ((), b"a\n", "say which head"),
        (("--multi-label",), b"a\n", "--multi-label and --hypothesis-template are for --labels"),
        (("--head", "mood"), b"a\tb\tc\td\n", r"'a\tb\tc\td': a line is a text, or two with a tab"),
        (("--head", "mood"), b"a\t\n", r"'a\t': a line is a text, or two with a tab between"),
        (
            ("--head", "mood", "--may-be-none"),
            b"a\n",
            "--may-be-none does nothing for the head 'mo",
        ),
        (
            ("--head", "nli", "--labels", "a", "--task", "sentence_prediction"),
            b"a\n",
            "--task does n",
        ),
        (
            ("--head", "stars", "--task", "token_classification"),
            b"a\n",
            "no names of tags; see --t",
        ),
        (("--labels", "a", "a"), b"a\n", "labels has 'a' twice"),
        (("--head", "mood", "--buffer-size", "0"), b"a\n", "--buffer-size 0 must be at least 1"),
    ],
)
def test_predict_errors(model, monkeypatch, capsys, arguments, data, message):
    feed(monkeypatch, data)
    assert predict.main([str(model), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_predict_names_the_command_that_writes_texts(tmp_path, monkeypatch, capsys):
    BARTHubInterface(CONFIG, random_params(CONFIG, 0.3), ENCODER).save(tmp_path / "writer")
    feed(monkeypatch, b"a\n")
    assert predict.main([str(tmp_path / "writer")]) == 2
    assert f"bart-hk-generate --path {tmp_path / 'writer'} writes" in capsys.readouterr().err
