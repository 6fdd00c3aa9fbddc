"""`task=denoising` through the training loop."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import threading

import numpy as np
import pytest

import bart_hk
from bart_hk.cli import convert
from bart_hk.data.readers import DataError
from bart_hk.data.store import write_store
from bart_hk.data.workers import WorkerError
from bart_hk.tasks.denoising import Denoising
from bart_hk.text import train_bpe
from bart_hk.training import loop
from bart_hk.training.config import ConfigError, complete
from bart_hk.training.loader import Loaded
from bart_hk.training.loop import train
from tests.tasks.test_denoising import ENCODER, write
from tests.training.conftest import MODEL, final_bytes, logged
from tests.training.rows import Deadly


@pytest.fixture(scope="module")
def configured(tmp_path_factory):
    data = write(tmp_path_factory.mktemp("pretraining") / "data")

    def make(save_dir, **changes):
        config = {
            "task": {"_name": "denoising", "data": str(data), "tokens_per_sample": 38},
            "model": MODEL,
            "criterion": {"_name": "label_smoothed_cross_entropy", "label_smoothing": 0.1},
            "dataset": {"batch_size": 16, "length_buckets": [40]},
            "optimization": {"lr": 1e-2, "max_epoch": 3},
            "lr_scheduler": {},
            "common": {"log_interval": 2, "no_progress_bar": True},
            "checkpoint": {"save_dir": str(save_dir)},
        }
        return {group: config.get(group, {}) | changes.get(group, {}) for group in config}

    return make


@pytest.fixture(scope="module")
def whole(configured, tmp_path_factory):
    """The directory of a run that nothing interrupted, without workers."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(configured(folder))
    return folder


def same(folder, whole) -> bool:
    return final_bytes(folder, heads=False) == final_bytes(whole, heads=False)


def test_it_learns(whole):
    lines = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["event"] == "train"]
    validated = [line for line in lines if line["event"] == "valid"]
    assert {"nll_loss", "nll_loss_base2", "loss_base2", "ppl"} <= set(trained[0])
    assert trained[0]["loss"] > trained[0]["nll_loss"] * 0.9
    assert validated[-1]["ppl"] < 0.6 * trained[0]["ppl"] and validated[-1]["ppl"] > 1
    for line in trained:
        assert line["ppl"] == pytest.approx(math.exp(line["nll_loss"]), rel=1e-6)
        assert line["nll_loss_base2"] == pytest.approx(line["nll_loss"] / math.log(2), rel=1e-6)
        assert line["loss_base2"] == pytest.approx(line["loss"] / math.log(2), rel=1e-6)
        # No further apart than the rounding of both: whole tokens a second, thousandths of seconds.
        rate, seconds = line["tokens_per_second"], line["seconds"]
        error = 0.5 * seconds + 5e-4 * rate + 1e-3
        assert rate * seconds == pytest.approx(line["tokens"], rel=0, abs=error)
    # fairseq's: from 0.01 after one update of warm-up to 0, and the rate that the update used.
    last = trained[-1]["update"]
    rates = [1e-2 * (1 - (line["update"] - 2) / (last - 1)) for line in trained]
    assert [line["lr"] for line in trained] == pytest.approx(rates, rel=1e-4)
    assert bart_hk.load(whole).encode("the cat sat.").size > 3


def test_it_begins_with_fairseqs_checkpoint_as_with_our_folder(configured, whole, tmp_path):
    assert convert.main([str(whole), str(tmp_path / "fairseq"), "--to", "fairseq"]) == 0
    for name, source in (("one", whole), ("other", tmp_path / "fairseq" / "model.pt")):
        restored = {"restore_file": str(source)}
        train(configured(tmp_path / name, checkpoint=restored, optimization={"max_update": 2}))
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert models[0] == models[1] and logged(tmp_path / "one") == logged(tmp_path / "other")
    assert logged(tmp_path / "one")[0]["loss"] < logged(whole)[0]["loss"] - 0.5


def test_it_goes_on_with_the_same_noise_and_other_workers(configured, whole, tmp_path, monkeypatch):
    last = logged(whole)[-1]["update"]
    plain = loop.Run._update

    def update(self: loop.Run, made: Loaded) -> None:
        plain(self, made)
        if self.progress.update == last // 2 + 1:  # within an epoch
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Run, "_update", update)
    with pytest.raises(SystemExit):
        train(configured(tmp_path / "run", dataset={"num_workers": 2}))
    assert not multiprocessing.active_children()
    train(configured(tmp_path / "run", dataset={"num_workers": 1}))
    assert same(tmp_path / "run", whole) and logged(tmp_path / "run") == logged(whole)


def test_a_worker_that_dies_costs_no_update(configured, whole, tmp_path, monkeypatch):
    plain = Denoising.encode

    def encode(self: Denoising, *arguments) -> None:
        plain(self, *arguments)
        self.train.__class__ = Deadly

    config = configured(tmp_path / "run", dataset={"num_workers": 2})
    with monkeypatch.context() as patched:
        patched.setattr(Denoising, "encode", encode)
        with pytest.raises(WorkerError, match="killed by SIGKILL .is the memory used up"):
            train(config)
    epoch = logged(whole)[-1]["update"] // 3
    names = [path.name for path in (tmp_path / "run" / "training").glob("update_*")]
    saved = max(int(name.removeprefix("update_")) for name in names)
    assert epoch <= saved < 2 * epoch
    train(config)
    assert same(tmp_path / "run", whole) and logged(tmp_path / "run") == logged(whole)


def test_other_data_in_the_same_folder_do_not_go_on_with_a_run(configured, whole, tmp_path):
    data = write(tmp_path / "data")
    shutil.copytree(whole, tmp_path / "run")
    config = configured(tmp_path / "run", task={"data": str(data)})
    train(config)  # the same text elsewhere: done already
    shutil.rmtree(data)
    write(data, seed=7)
    before = final_bytes(tmp_path / "run", heads=False)
    with pytest.raises(ConfigError, match="begun with the data of task.train=.*, now it is "):
        train(config)
    shutil.rmtree(data)
    write(data)
    whole_valid = (data / "valid.bin").read_bytes()
    (data / "valid.bin").write_bytes(whole_valid[:2] + whole_valid[:2] + whole_valid[4:])
    with pytest.raises(ConfigError, match="begun with the data of task.valid="):
        train(config)
    assert final_bytes(tmp_path / "run", heads=False) == before


def test_another_tokenizer_in_the_same_folder_does_not_go_on(configured, whole, tmp_path):
    data = write(tmp_path / "data")
    shutil.copytree(whole, tmp_path / "run")
    config = configured(tmp_path / "run", task={"data": str(data)})
    record = tmp_path / "run" / "training" / "run.json"
    begun = json.loads(record.read_text())
    vocabulary = json.loads((data / "vocab.json").read_text())
    first, second = list(vocabulary)[-3:-1]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (data / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ConfigError, match="begun with the tokenizer's symbols=.*, now it is "):
        train(config)
    del begun["the tokenizer's symbols"]  # as of an older version
    record.write_text(json.dumps(begun))
    train(config)


def test_a_run_of_before_goes_on_with_an_option_that_nothing_reads(configured, whole, tmp_path):
    unread = {"task": {"poisson_lambda": 2.0, "noise": "token_masking"}}
    with pytest.raises(ConfigError, match="poisson_lambda=2.0 does nothing with task.noise=token_"):
        train(configured(tmp_path / "new", **unread))
    shutil.copytree(whole, tmp_path / "run")
    record = tmp_path / "run" / "training" / "run.json"
    begun = {f"task.{key}": value for key, value in unread["task"].items()}
    record.write_text(json.dumps(json.loads(record.read_text()) | begun))
    train(configured(tmp_path / "run", checkpoint={"save_dir": str(tmp_path / "run")}, **unread))


def test_shards_of_several_sizes(configured, tmp_path):
    """The schedule ends where the run does, and rows that are a bit longer are hardly padded."""
    ENCODER.save(tmp_path / "first")
    (tmp_path / "second").mkdir()
    for name, role, sizes in (
        ("first", "train", [18] * 20),
        ("first", "valid", [21]),
        ("second", "train", [19, 20] * 40),
    ):
        write_store(tmp_path / name / role, np.full(sum(sizes), 9), np.array(sizes), 300)
    config = configured(
        tmp_path / "run",
        task={"data": f"{tmp_path}/first:{tmp_path}/second", "sample_break_mode": "eos"},
        dataset={"batch_size": None, "max_tokens": 256, "length_buckets": []},
        optimization={"max_epoch": 3},
    )
    run = loop.Run(complete(config), tmp_path, threading.Event())
    run.log.close()
    updates = sum(len(run.loader.updates(epoch)) for epoch in (1, 2, 3))
    assert updates == 2 * 2 + 8 and run.rate(updates - 1) > 0 == run.rate(updates)
    assert run.loader.buckets == [20, 23, 40]


def test_corpora_bring_their_tokenizer(configured, tmp_path):
    data = tmp_path / "corpora"
    for number, name in enumerate(("books", "reviews")):
        write(data / name, documents=20, seed=number)
    config = configured(tmp_path / "run", task={"data": str(data)}, optimization={"max_update": 1})
    train(config)
    names = ("vocab.json", "merges.txt")
    assert all(
        (data / "books" / n).read_bytes() == (tmp_path / "run" / n).read_bytes() for n in names
    )
    # Those of the others must be the same.
    other = train_bpe(["quite another text, with other words"] * 5, len(ENCODER.dictionary))
    other.save(data / "reviews")
    with pytest.raises(DataError, match="reviews was made with another vocabulary: id "):
        train(config | {"checkpoint": {"save_dir": str(tmp_path / "again")}})


def test_the_best_perplexity_is_the_lowest(configured, tmp_path):
    config = configured(
        tmp_path / "run",
        checkpoint={"save_dir": str(tmp_path / "run"), "best_checkpoint_metric": "ppl"},
    )
    result = train(config)
    validated = [line for line in logged(tmp_path / "run") if line["event"] == "valid"]
    assert result.valid["ppl"] == min(line["ppl"] for line in validated)


def test_the_criterion_of_another_task(configured, tmp_path):
    config = configured(tmp_path / "run", criterion={"_name": "sentence_prediction"})
    config["criterion"] = "sentence_prediction"
    with pytest.raises(ConfigError, match="has criterion=cross_entropy or label_smoothed_cross"):
        train(config)
