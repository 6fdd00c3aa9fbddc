"""`task=denoising` through the training loop."""

import os
import signal

import pytest

import bart_hk
from bart_hk.training import loop
from bart_hk.training.config import ConfigError
from bart_hk.training.loop import train
from tests.tasks.test_denoising import write
from tests.training.conftest import MODEL, final_bytes, logged


@pytest.fixture(scope="module")
def configured_for_noise(tmp_path_factory):
    data = write(tmp_path_factory.mktemp("pretraining") / "data")

    def make(save_dir, **changes):
        config = {
            "task": {"_name": "denoising", "data": str(data), "tokens_per_sample": 38},
            "model": MODEL,
            "criterion": {"_name": "label_smoothed_cross_entropy", "label_smoothing": 0.1},
            "dataset": {"batch_size": 16, "length_buckets": [40]},
            "optimization": {"lr": 1e-2, "max_epoch": 3},
            "common": {"log_interval": 2, "no_progress_bar": True},
            "checkpoint": {"save_dir": str(save_dir)},
        }
        return {group: config.get(group, {}) | changes.get(group, {}) for group in config}

    return make


def test_it_learns_and_goes_on_with_the_same_noise(configured_for_noise, tmp_path, monkeypatch):
    result = train(configured_for_noise(tmp_path / "whole"))
    lines = logged(tmp_path / "whole")
    trained = [line for line in lines if line["event"] == "train"]
    validated = [line for line in lines if line["event"] == "valid"]
    assert {"nll_loss", "nll_loss_base2", "loss_base2", "ppl"} <= set(trained[0])
    assert trained[0]["loss"] > trained[0]["nll_loss"] * 0.9
    assert validated[-1]["ppl"] < 0.6 * trained[0]["ppl"] and result.valid["ppl"] > 1
    assert bart_hk.load(tmp_path / "whole").encode("the cat sat.").size > 3

    plain = loop.Run._update

    def update(self: loop.Run, group: list) -> None:
        plain(self, group)
        if self.progress.update == trained[-1]["update"] // 2 + 1:  # within an epoch
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Run, "_update", update)
    config = configured_for_noise(tmp_path / "parts")
    with pytest.raises(SystemExit):
        train(config)
    train(config)
    assert final_bytes(tmp_path / "parts", heads=False) == final_bytes(
        tmp_path / "whole", heads=False
    )
    assert logged(tmp_path / "parts") == lines


def test_the_best_perplexity_is_the_lowest(configured_for_noise, tmp_path):
    config = configured_for_noise(
        tmp_path / "run",
        checkpoint={"save_dir": str(tmp_path / "run"), "best_checkpoint_metric": "ppl"},
    )
    result = train(config)
    validated = [line for line in logged(tmp_path / "run") if line["event"] == "valid"]
    assert result.valid["ppl"] == min(line["ppl"] for line in validated)


def test_the_criterion_of_another_task(configured_for_noise, tmp_path):
    config = configured_for_noise(tmp_path / "run", criterion={"_name": "sentence_prediction"})
    config["criterion"] = "sentence_prediction"
    with pytest.raises(ConfigError, match="has criterion=cross_entropy or label_smoothed_cross"):
        train(config)
