"""Runs of models of one stack, from nothing to the hub."""

import copy
import json

import numpy as np
import pytest

import bart_hk
from bart_hk.data.documents import find_files
from bart_hk.data.preprocessing import preprocess
from bart_hk.text import train_bpe
from bart_hk.training.config import ConfigError
from bart_hk.training.loop import train
from tests.training.conftest import MODEL

VERSE = "the owl and the lark went to sea"
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}


def config_of(folder, flavour: str, task: dict, **changes) -> dict:
    base = {
        "task": task,
        "model": MODEL | PRE_NORM | {"flavour": flavour, "dropout": 0.0},
        "dataset": {"batch_size": 8, "length_buckets": [40]},
        "optimization": {"lr": 1e-2, "max_epoch": 40},
        "lr_scheduler": "fixed",
        "common": {"log_interval": 5, "no_progress_bar": True},
        "checkpoint": {"save_dir": str(folder), "save_interval": 100},
    }
    base = copy.deepcopy(base)
    for group, values in changes.items():
        base[group] |= values
    return base


def logged(folder, event: str) -> list[dict]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A language model of one line."""
    folder = tmp_path_factory.mktemp("writer")
    (folder / "train.txt").write_text(f"{VERSE}\n" * 16)
    task = {"_name": "language_modeling", "tokens_per_sample": 40, "tokenizer": "characters"}
    task["train"] = str(folder / "train.txt")
    wider = {"encoder_embed_dim": 32}
    train(config_of(folder / "run", "decoder_only", task, model=wider))
    return folder


def test_a_language_model_is_trained_and_goes_on(writer):
    loss = [line["nll_loss"] for line in logged(writer / "run", "train")]
    assert loss[0] > 2.5 and loss[-1] < 0.5
    bart = bart_hk.load(writer / "run")
    assert bart.sample("the owl and the l", max_len_b=8) == "the owl and the lark went"
    assert bart.perplexity(VERSE) < 2 < 10 < bart.perplexity(VERSE[::-1])


def test_a_tokens_own_flops_are_counted(writer):
    """Of an update 6 for each weight and real token, and a little for attention."""
    line = logged(writer / "run", "train")[0]
    bart = bart_hk.load(writer / "run")
    weights = sum(
        leaf.size
        for path, leaves in bart.params.items()
        for name, leaf in leaves.items()
        if name == "w" or path == "embed_tokens"
    )
    assert 1 < line["flops"] / (6 * weights * line["tokens"]) < 1.3


def test_masked_tokens_are_predicted_in_place(tmp_path):
    (tmp_path / "train.txt").write_text(f"{VERSE}\n\n" * 24)
    encoder = train_bpe([VERSE] * 9, 320)
    preprocess(find_files([tmp_path / "train.txt"]), tmp_path / "data", lambda: encoder, workers=1)
    task = {"_name": "denoising", "data": str(tmp_path / "data"), "tokens_per_sample": 40}
    wrong = config_of(tmp_path / "run", "encoder_only", task)
    with pytest.raises(ValueError, match="task.noise=bart, as it is set, moves tokens.*token_mask"):
        train(wrong)
    task["noise"] = "token_masking"
    train(config_of(tmp_path / "right", "encoder_only", task))
    loss = [line["nll_loss"] for line in logged(tmp_path / "right", "train")]
    assert loss[0] > 3 and loss[-1] < 1
    shares = [line["tokens"] / line["rows"] for line in logged(tmp_path / "right", "train")]
    # Those that noise has replaced alone: 0.3 of them, rounded up.
    assert len(encoder.encode(VERSE)) == 8 and np.mean(shares) == pytest.approx(3, abs=0.3)
    bart = bart_hk.load(tmp_path / "right")
    ((text, probability), *_) = bart.fill_mask("the owl and the<mask> went to sea")
    assert text == VERSE and probability > 0.3


def test_a_classifier_needs_no_decoder(configured, tmp_path):
    config = configured(tmp_path / "run", optimization={"max_epoch": 8})
    config["dataset"]["validate_interval"] = config["checkpoint"]["save_interval"] = 8
    config["model"] |= PRE_NORM | {"flavour": "encoder_only", "dropout": 0.0}
    config["checkpoint"]["best_checkpoint_metric"] = "accuracy"
    assert train(config).valid["accuracy"] >= 85
    bart = bart_hk.load(tmp_path / "run")
    assert bart.classify("a great film") == ("pos", pytest.approx(1, abs=0.5))
    assert not any("decoder" in path for path in bart.params)


@pytest.mark.parametrize(
    ("task", "flavour", "known"),
    [
        ("language_modeling", "encoder_decoder", "decoder_only, and this one is encoder_decoder"),
        ("language_modeling", "encoder_only", "decoder_only, and this one is encoder_only"),
        ("translation", "decoder_only", "encoder_decoder, and this one is decoder_only"),
        ("denoising", "decoder_only", "encoder_decoder or encoder_only, and this one is decoder_o"),
    ],
)
def test_a_task_names_the_models_that_it_trains(tmp_path, task, flavour, known):
    (tmp_path / "train.tsv").write_text("source\ttarget\na\tb\n")
    (tmp_path / "train.txt").write_text("a b\n")
    encoder = train_bpe(["a b"], 270)
    store = tmp_path / "store"
    preprocess(find_files([tmp_path / "train.txt"]), store, lambda: encoder, workers=1)
    options = {
        "language_modeling": {"train": str(tmp_path / "train.txt"), "vocab_size": 270},
        "translation": {"train": str(tmp_path / "train.tsv"), "vocab_size": 270},
        "denoising": {"data": str(store), "tokens_per_sample": 32},
    }[task]
    config = config_of(tmp_path / "run", flavour, {"_name": task, **options})
    with pytest.raises(ConfigError, match=f"task={task} trains a model that is {known}") as error:
        train(config)
    assert "\n" not in str(error.value) and "set model.flavour" in str(error.value)


def test_a_restored_model_keeps_its_flavour(writer, tmp_path):
    (tmp_path / "train.tsv").write_text("source\ttarget\na\tb\n")
    task = {"_name": "translation", "train": str(tmp_path / "train.tsv")}
    run = config_of(tmp_path / "run", "encoder_decoder", task)
    run["checkpoint"]["restore_file"] = str(writer / "run")
    with pytest.raises(ConfigError, match="run is decoder_only: take another model"):
        train(run)
    other = config_of(tmp_path / "run", "encoder_only", task)
    other["checkpoint"]["restore_file"] = str(writer / "run")
    with pytest.raises(ConfigError, match="encoder_only, and .* is decoder_only: a restored"):
        train(other)
