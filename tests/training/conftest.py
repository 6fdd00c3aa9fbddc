"""Tiny runs on sentences whose class hangs on one word."""

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = {"pos": ["good", "great"], "neg": ["bad", "awful"]}
FILLERS = "the a film plot actor scene and of it is was very with".split()

MODEL = {
    "_name": "bart_base",
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 32,
    "decoder_ffn_embed_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_source_positions": 40,
    "max_target_positions": 40,
    "dropout": 0.0,  # which makes a step's program twice as large
}
WITH_DROPOUT = {"model": MODEL | {"dropout": 0.1}}


def write_sentences(path: Path, count: int, seed: int) -> Path:
    draw = random.Random(seed)
    lines = ["sentence\tlabel"]
    for _ in range(count):
        label = draw.choice(["pos", "neg"])
        words = [draw.choice(FILLERS) for _ in range(draw.randint(2, 12))]
        words.insert(draw.randrange(len(words)), draw.choice(WORDS[label]))
        lines.append(f"{' '.join(words)}\t{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.tsv (96 rows) and valid.tsv (24 rows)."""
    folder = tmp_path_factory.mktemp("sentences")
    write_sentences(folder / "train.tsv", 96, seed=0)
    write_sentences(folder / "valid.tsv", 24, seed=1)
    return folder


@pytest.fixture(scope="session")
def configured(sentences: Path) -> Callable[..., dict[str, Any]]:
    """configured(save_dir, group={key: value}) -> the config of a run of three epochs."""
    base = {
        "task": {"data": str(sentences), "vocab_size": 280},
        "model": MODEL,
        "dataset": {"batch_size": 16, "length_buckets": [40]},
        "optimization": {"lr": 1e-2, "max_epoch": 3},
        "common": {"log_interval": 2, "no_progress_bar": True},
        "checkpoint": {},
    }

    def make(save_dir: Path, **changes: dict[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = copy.deepcopy(base)
        config["checkpoint"]["save_dir"] = str(save_dir)
        for group, values in changes.items():
            config[group] = config.get(group, {}) | values
        return config

    return make


@pytest.fixture(scope="session")
def finished(configured: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of an uninterrupted run with dropout, which saves every second update."""
    from bart_hk.training.loop import train

    folder = tmp_path_factory.mktemp("finished") / "run"
    train(configured(folder, checkpoint={"save_interval_updates": 2}, **WITH_DROPOUT))
    return folder


def logged(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without what differs between machines and interruptions."""
    from bart_hk.training.log import TIMING

    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in TIMING} for line in lines]


def final_bytes(folder: Path, heads: bool = True) -> dict[str, bytes]:
    """Everything that a finished run's parameters are in; of a task with a head, `heads`."""
    from bart_hk.training import state

    arrays, _ = state.peek(folder / "training") or ({}, {})
    content = {name: array.tobytes() for name, array in arrays.items()}
    assert content
    names = [name for name in MODEL_FILES if heads or name != "heads.safetensors"]
    paths = [folder / part / name for part in (".", "last") for name in names]
    return content | {str(path.relative_to(folder)): path.read_bytes() for path in paths}


MODEL_FILES = ("model.safetensors", "heads.safetensors", "bart_hk.json", "config.json")
