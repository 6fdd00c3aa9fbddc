"""`bart-hk-train` as a user meets it: the command line, its errors, its configuration."""

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from bart_hk.checkpoint.huggingface import read_model
from bart_hk.cli import summary
from bart_hk.cli import train as cli
from bart_hk.data.store import StoreWriter
from bart_hk.text import train_bpe

ROWS = "".join(f"{'a good film' if i % 2 else 'a bad film'}\t{i % 2}\n" for i in range(16))
TINY = [
    "task.vocab_size=270",
    *(
        f"model.{key}={value}"
        for key, value in {
            "encoder_embed_dim": 8,
            "encoder_ffn_embed_dim": 8,
            "decoder_ffn_embed_dim": 8,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "max_source_positions": 16,
            "max_target_positions": 16,
        }.items()
    ),
    "dataset.batch_size=8",
    "optimization.max_epoch=1",
]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of its own, with train.tsv and dev.tsv, that is the working directory."""
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\n" + ROWS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # main sets it; put back after the test
    # Setting up its own logging, Hydra closes every handler there is, absl's with pytest's stream.
    monkeypatch.setattr(logging, "shutdown", lambda *args: None)
    return tmp_path


def run(monkeypatch, *overrides: str) -> int:
    # Hydra's handlers would outlive the test's captured streams.
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
    monkeypatch.setattr(sys, "argv", ["bart-hk-train", *overrides, *quiet])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_command(data, monkeypatch):
    """The group `task`, files and save_dir as in the README; and the same again, which is done."""
    overrides = ["task=sentence_prediction", "task.train=train.tsv", "task.valid=dev.tsv"]
    overrides += ["model=bart_base", "checkpoint.save_dir=out/first", *TINY]
    assert run(monkeypatch, *overrides) == 0
    out = data / "out" / "first"
    assert read_model(out).heads["sentence_classification_head"].labels == ["0", "1"]
    # Hydra's own record is in the same place, without a time stamp.
    assert (out / ".hydra" / "overrides.yaml").exists() and not (data / "outputs").exists()
    before = (out / "log.jsonl").read_bytes()
    assert run(monkeypatch, *overrides) == 0
    assert (out / "log.jsonl").read_bytes() == before

    overrides = ["task.train=train.tsv", "checkpoint.restore_file=out/first"]
    overrides += ["checkpoint.save_dir=out/second", "optimization.max_epoch=1"]
    assert run(monkeypatch, *overrides) == 0
    assert read_model(data / "out" / "second").config.encoder_embed_dim == 8


def test_a_sweep_makes_a_directory_for_each_run(data, monkeypatch, capsys):
    overrides = ["--multirun", "task.train=train.tsv", "task.valid=dev.tsv", *TINY]
    overrides += ["common.seed=1,2", "optimization.lr=0.01", "checkpoint.save_dir=sweep"]
    assert run(monkeypatch, *overrides) == 0
    folders = [data / "sweep" / number for number in "01"]
    seeds = [json.loads((f / "training" / "run.json").read_text())["common.seed"] for f in folders]
    assert seeds == [1, 2]
    one, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert one != other
    # The table is of the validations that the logs end with.
    logs = [json.loads((f / "log.jsonl").read_text().splitlines()[-1]) for f in folders]
    found = [[log["loss"], log["accuracy"]] for log in logs]
    capsys.readouterr()
    assert summary.main(["sweep", "--tsv", "--by", "optimization.lr"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["run", "common.seed", "update", "loss", "accuracy"]
    for number, row in enumerate(rows[1:3]):
        values = [f"{value:.4g}" for value in found[number]]
        assert row == [str(number), str(seeds[number]), "2", *values]
    means = [f"{(a + b) / 2:.4g}" for a, b in zip(*found, strict=True)]
    assert rows[4] == ["mean of 2, optimization.lr=0.01", "", "", *means]
    assert len(rows) == 6


def test_a_run_that_fails_leaves_the_rest_of_a_sweep(data, monkeypatch, capsys):
    (data / "bad.tsv").write_text("sentence\tlabel\na\t1\n")
    overrides = ["--multirun", "task.train=bad.tsv,train.tsv", *TINY, "checkpoint.save_dir=sweep"]
    assert run(monkeypatch, *overrides) == 2
    said = capsys.readouterr().err
    assert said.count("error") == 1 and "sweep/0: bad.tsv: every row has the label '1'" in said
    assert not (data / "sweep" / "0" / "config.json").exists()
    assert (data / "sweep" / "1" / "config.json").exists()


def test_the_config_is_shown_with_fairseqs_groups(data, monkeypatch, capsys):
    assert run(monkeypatch, "--cfg", "job", "model=bart_large", "lr_scheduler=cosine") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert set(shown) == {
        "common",
        "task",
        "model",
        "criterion",
        "optimizer",
        "lr_scheduler",
        "dataset",
        "optimization",
        "checkpoint",
        "ema",
        "tuning",
        "distillation",
    }
    assert shown["model"]["encoder_layers"] == 12 and shown["model"]["_name"] == "bart_large"
    assert shown["lr_scheduler"]["_name"] == "cosine"
    assert shown["optimizer"]["adam_betas"] == [0.9, 0.999]


@pytest.mark.parametrize(
    ("task", "key", "overrides", "expected"),
    [
        ("denoising", "weights", ["weights.a=1", "weights.b=2.5"], {"a": 1.0, "b": 2.5}),
        ("translation", "generation", ["generation={beam: 2}"], {"beam": 2}),
        ("autoencoding", "generation", ["generation.max_len_b=9"], {"max_len_b": 9}),
    ],
)
def test_mappings_take_new_keys(data, monkeypatch, capsys, task, key, overrides, expected):
    assert run(monkeypatch, "--cfg", "job", f"task={task}", *(f"task.{o}" for o in overrides)) == 0
    assert yaml.safe_load(capsys.readouterr().out)["task"][key] == expected


@pytest.mark.parametrize("name", [p.stem for p in (cli._CONF / "experiment").glob("*.yaml")])
def test_experiments_are_whole_configs(data, monkeypatch, capsys, name):
    assert run(monkeypatch, "--cfg", "job") == 0
    plain = yaml.safe_load(capsys.readouterr().out)
    assert run(monkeypatch, "--cfg", "job", f"experiment={name}") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown != plain
    cli.complete(shown)  # every key and type is right
    text = (cli._CONF / "experiment" / f"{name}.yaml").read_text()
    # The command, and what it reached or what is known of it.
    assert f"bart-hk-train experiment={name}" in text
    assert re.search("^# (Expected|Published): ", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.trian=x.tsv", "there is no task.trian; did you mean task.train?"),
        ("dropout=0.3", "there is no dropout; did you mean model.dropout?"),
        ("+dataset.foo=1", "there is no dataset.foo; there are dataset.batch_size, "),
        ("+task.generation.beam=2", "there is no task.generation"),
        ("modle=bart_base", "there is no modle; did you mean model?"),
        ("model=bart_huge", "model=bart_huge is not one of bart_large, bart_base, "),
        ("optimizer=sgd", "optimizer=sgd is not one of adam"),
        ("experiment=nothing", "experiment=nothing is not one of char_lm, cnn_dm, glue/cola"),
        ("dataset.batch_size=many", "dataset.batch_size: Value 'many' of type 'str' could not"),
        ("dataset.batch_size=0", "dataset.batch_size=0 must be at least 1"),
        ("dataset.batch_size=null", "set dataset.batch_size or dataset.max_tokens"),
        ("dataset.length_buckets=[8,4]", "dataset.length_buckets=[8, 4] must be rising lengths"),
        ("optimization.lr=fast", "optimization.lr=fast must be a number"),
        ("optimization.lr=[1e-3,1e-4]", "optimization.lr=[0.001, 0.0001] must have one entry"),
        ("optimization.clip_norm=-1", "optimization.clip_norm=-1.0 must be a number, 0 or more"),
        ("optimization.update_freq=1.5", "optimization.update_freq=1.5 must be a number (int)"),
        ("optimizer.adam_betas=[0.9]", "optimizer.adam_betas=[0.9] must be two numbers"),
        ("optimizer.epsilon=torch", "optimizer.epsilon: Invalid value 'torch', expected one of"),
        ("model.activation_fn=gule", "model.activation_fn: Invalid value 'gule', expected one of"),
        ("model.dropout=1.5", "dropout must be in [0, 1), not 1.5"),
        ("common.seed=-1", "common.seed=-1 must be in [0, 2^32)"),
        ("checkpoint.patience=3", "patience=3 needs validation, and there is no text for it; gi"),
        ("checkpoint.best_checkpoint_metric=accuracy", "metric=accuracy needs validation, and"),
        ("dataset.length_buckets=[8,32]", "length_buckets=[8, 32] are lengths of batches, and the"),
        ("dataset.max_tokens=4", "max_tokens=4 has no room for train.tsv, lines 3, which has "),
        ("task.train=missing.tsv", "missing.tsv does not exist"),
        ("task.train=broken.tsv", "broken.tsv, line 3: 1 columns where the header has 2"),
        (
            "task.valid=other.tsv",
            "other.tsv, line 2: label '7' is not in train.tsv, which has 0, 1",
        ),
        ("checkpoint.restore_file=nowhere", "no model 'nowhere'"),
        ("checkpoint.best_checkpoint_metric=bleu", "best_checkpoint_metric=bleu is not reported"),
        ("task.vocab_size=10", "vocab_size 10 is too small"),
        ("task.train", "Error parsing override 'task.train'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(data, monkeypatch, capfd, override, message):
    (data / "broken.tsv").write_text("sentence\tlabel\na\t1\nb\n")
    (data / "other.tsv").write_text("sentence\tlabel\na\t7\n")
    tiny = [] if "restore_file" in override else TINY
    overrides = ["task.train=train.tsv", "checkpoint.save_dir=out", *tiny, override]
    assert run(monkeypatch, *overrides) == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith("bart-hk-train: error: ") and message in error
    assert "\n" not in error


def test_an_unwritable_folder_is_found_before_any_work(data, monkeypatch, capfd):
    (data / "file").write_text("in the way")
    assert run(monkeypatch, "task.train=train.tsv", "checkpoint.save_dir=file/out", *TINY) == 1
    error = capfd.readouterr().err.strip()
    assert "checkpoint.save_dir: file/out cannot be made: Not a directory" in error
    assert "\n" not in error


def test_a_disk_that_is_full_from_the_start_is_named(data, monkeypatch, capfd):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hydra.core.utils._save_config", full)
    assert run(monkeypatch, "task.train=train.tsv", "checkpoint.save_dir=out", *TINY) == 1
    error = capfd.readouterr().err.strip()
    assert error.endswith(
        "error: checkpoint.save_dir=out cannot be written: No space left on device"
    )


def test_a_run_that_diverges_is_one_line(data, monkeypatch, capfd):
    overrides = ["task.train=train.tsv", "checkpoint.save_dir=out", *TINY]
    overrides += ["optimization.lr=1e30", "lr_scheduler=fixed", "optimization.max_epoch=9"]
    assert run(monkeypatch, *overrides) == 1
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("bart-hk-train: error: the ") and "train.tsv, lines " in error


def test_a_traceback_for_those_who_ask(data):
    root = Path(cli.__file__).parents[2]
    environment = os.environ | {"HYDRA_FULL_ERROR": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "bart_hk.cli.train", "task.train=missing.tsv"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 1 and "Traceback" in found.stderr
    assert "DataError: missing.tsv does not exist" in found.stderr


def _of_sentences(folder: Path) -> list[str]:
    for name in ("train", "dev_matched", "dev_mismatched"):
        rows = "".join(f"a film\t{i} good\tneutral\n" for i in range(6 if "mis" in name else 4))
        rows += "no film\tbad\tentailment\nno\tyes\tcontradiction\n"
        (folder / f"{name}.tsv").write_text("sentence1\tsentence2\tgold_label\n" + rows)
    return ["task.glue=mnli", "task.data=.", "task.max_positions=16"]


def _of_options(folder: Path) -> list[str]:
    rows = "".join(f"it is {i}\ta film\ta book\t{1 + i % 2}\n" for i in range(8))
    for name in ("train", "dev"):
        (folder / f"{name}.tsv").write_text("about\tone\ttwo\tright\n" + rows)
    options = ["task.context_column=about", "task.option_columns=[one,two]"]
    return ["task=sentence_ranking", "criterion=sentence_ranking", "task.data=.", *options] + [
        *("task.label_column=right", "task.first_label=1")
    ]


def _of_words(folder: Path) -> list[str]:
    for name in ("train", "dev"):
        (folder / f"{name}.conll").write_text("a O x\nfilm B-X x\n\nno O x\n\n" * 4)
    return ["task=token_classification", "criterion=token_classification", "task.data=."] + [
        *("task.label_column=1", "optimization.lr=1e-2")
    ]


def _of_questions(folder: Path) -> list[str]:
    asked = [
        {"id": str(i), "question": "w", "answers": [{"text": "An", "answer_start": 0}]}
        for i in range(4)
    ]
    paragraphs = [{"context": "An is", "qas": asked}]
    for name in ("train", "dev"):
        content = {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return ["task=question_answering", "criterion=question_answering", "task.data=."] + [
        *("optimization.lr=3e-2", "optimization.max_epoch=10")
    ]


def _of_pairs(folder: Path) -> list[str]:
    for name in ("train", "valid"):
        (folder / f"{name}.en").write_text("a b c d e\nf g h i j\n" * 4)
        (folder / f"{name}.de").write_text("1 2 3 4 5\n6 7 8 9 0\n" * 4)
    languages = ["task.source_lang=en", "task.target_lang=de", "task.eval_bleu=true"]
    languages += ["optimization.lr=3e-2", "optimization.max_epoch=40"]
    languages += ["checkpoint.best_checkpoint_metric=bleu", "dataset.validate_interval=20"]
    return ["task=translation", "criterion=cross_entropy", "task.data=.", *languages]


def _of_ids(folder: Path) -> list[str]:
    """What fairseq-preprocess makes of `_of_pairs`."""
    overrides = _of_pairs(folder)
    texts = {end: (folder / f"train.{end}").read_text().splitlines() for end in ("en", "de")}
    encoder = train_bpe([*texts["en"], *texts["de"]], 270)
    encoder.save_fairseq(folder)
    (folder / "dict.txt").rename(folder / "dict.en.txt")
    shutil.copy(folder / "dict.en.txt", folder / "dict.de.txt")
    for end, lines in texts.items():
        for name in ("train", "valid"):
            writer = StoreWriter(folder / f"{name}.en-de.{end}", len(encoder.dictionary))
            for line in lines:
                ids = np.array([*encoder.encode(line), 2], np.int32)
                writer.add(ids, np.array([len(ids)]))
            writer.finish()
            (folder / f"{name}.{end}").unlink()
    encoder.save(folder / "tokenizer")
    return [*overrides, "task.vocab_size=null", "task.tokenizer=tokenizer"]


@pytest.mark.parametrize(
    ("write", "metrics", "rows"),
    [
        (_of_sentences, ["accuracy"], {"dev_matched": 6, "dev_mismatched": 8}),
        (_of_options, ["accuracy"], {"dev": 8}),
        (_of_words, ["accuracy", "f1"], {"dev": 8}),
        (_of_questions, ["exact_match", "f1"], {"dev": 4}),
        (_of_pairs, ["bleu"], {"valid": 8}),
        (_of_ids, ["bleu"], {"valid": 8}),
    ],
)
def test_the_score_and_the_predictions_of_a_run(tmp_path, monkeypatch, data, write, metrics, rows):
    """With common.evaluate one command leaves what bart-hk-evaluate writes of the best model."""
    for name in ("train.tsv", "dev.tsv"):
        (data / name).unlink()
    overrides = [*TINY, *write(data), "checkpoint.save_dir=out", "common.evaluate=true"]
    assert run(monkeypatch, *overrides) == 0
    log = [json.loads(line) for line in (data / "out" / "log.jsonl").read_text().splitlines()]
    valid = [entry for entry in log if entry["event"] == "valid" and entry["best"]][-1]
    assert valid[metrics[0]] > 0
    folders = sorted(data.glob("out/evaluation-*"))
    assert [folder.name for folder in folders] == [f"evaluation-{name}" for name in sorted(rows)]
    for folder, (name, count) in zip(folders, sorted(rows.items()), strict=True):
        about = json.loads((folder / "metrics.json").read_text())
        assert about["rows"] == count and Path(about["data"]).name.startswith(name)
        assert len((folder / "predictions.jsonl").read_text().splitlines()) == count
        for metric in metrics if folder == folders[0] else ():
            assert about["metrics"][metric]["value"] == pytest.approx(valid[metric], abs=1e-4)


def test_what_evaluation_needs_is_missed_before_training(data, monkeypatch, capsys):
    """BLEU is what is trained for here; the evaluation has ROUGE, too."""
    monkeypatch.setitem(sys.modules, "rouge_score", None)
    (data / "pairs.tsv").write_text("source\ttarget\na film\tfilm\n")
    overrides = ["task=translation", "task.train=pairs.tsv", "task.valid=pairs.tsv", *TINY]
    overrides += ["task.eval_bleu=true", "common.evaluate=true", "checkpoint.save_dir=out"]
    assert run(monkeypatch, *overrides) == 2
    message = capsys.readouterr().err
    assert "ROUGE needs the package rouge-score" in message and message.count("\n") == 1
    assert not (data / "out" / "log.jsonl").exists()


def test_nothing_to_evaluate_is_said_before_training(data, monkeypatch, capsys):
    (data / "dev.tsv").unlink()
    overrides = ["task.train=train.tsv", "checkpoint.save_dir=out", "common.evaluate=true", *TINY]
    assert run(monkeypatch, *overrides) == 2
    assert "common.evaluate=true needs a validation file" in capsys.readouterr().err
    assert not (data / "out" / "log.jsonl").exists()
