"""Whatever a checkpoint that was read holds instead of arguments and tensors: one exception."""

import random
from typing import Any

import numpy as np
import pytest

from bart_hk.checkpoint.fairseq_file import read_fairseq
from bart_hk.errors import CheckpointError
from bart_hk.torch_format import read_torch
from tests.conftest import GOLDENS

ROUNDS = 1500
ODD: list[Any] = [
    *(None, True, 0, -1, 1, 10**30, 1.5, float("nan"), "", "x", "a\nb", "1,2", "0,99", b"x"),
    *([], [1], ["a"], {}, {"a": 1}, {1: 2}, (1, 2)),
    *(np.zeros(0), np.array(3.0), np.zeros((2, 3)), np.zeros((3, 3, 3)), np.array(["a"])),
    *(np.zeros((0, 16)), np.zeros((16, 0), np.float16), np.zeros(48), np.zeros(4, complex)),
]
MORE = [
    *("langs", "relu_dropout", "encoder_layers_to_keep", "regression_target", "lang_dict"),
    *("classification_head_name", "unk_token_id", "decoder.embed_out", "a\nb"),
    *(f"classification_heads.wide.out_proj.weight_{part}" for part in ("orig", "u", "v")),
    "encoder.layers.0.self_attn.in_proj_weight",
]


def mutated(rng: random.Random, original: dict[str, Any]) -> dict[str, Any]:
    checkpoint = {k: dict(v) if isinstance(v, dict) else v for k, v in original.items()}
    ours = {"config": {"unk_token_id": None}, "heads": {"wide": {"labels": ["a", "b"]}}}
    checkpoint["bart_hk"] = {**ours, "extras": {"a": 1}}
    cfg = checkpoint.get("cfg")
    if cfg:
        cfg["model"] = dict(cfg["model"])
    settings = cfg["model"] if cfg else checkpoint["args"]
    places = [
        checkpoint,
        checkpoint["model"],
        settings,
        settings,
        checkpoint["bart_hk"],
        *ours.values(),
    ]
    for _ in range(rng.randint(1, 3)):
        place = rng.choice(places)
        key = rng.choice([*place, *MORE])
        action = rng.random()
        if action < 0.15:
            place.pop(key, None)
        elif action < 0.3 and place:
            place[key] = rng.choice(list(place.values()))
        else:
            place[key] = rng.choice(ODD)
    return checkpoint


def test_mutations_end_in_a_model_or_in_one_line(monkeypatch):
    names = ("trained", "half_2019", "omegaconf", "heads", "mbart")
    paths = [GOLDENS / "checkpoints" / f"{name}.pt" for name in names]
    originals = [read_torch(path, only=("model", "args", "cfg")) for path in paths]
    rng, read = random.Random(3), 0
    for number in range(ROUNDS):
        checkpoint = mutated(rng, rng.choice(originals))
        monkeypatch.setattr(
            "bart_hk.checkpoint.fairseq_file.read_torch", lambda *_, c=checkpoint, **__: c
        )
        try:
            read_fairseq(paths[0])
            read += 1
        except CheckpointError as error:
            assert "\n" not in str(error) and str(error).startswith(f"{paths[0]}: ")
        except Exception as error:
            pytest.fail(f"mutation {number}: {type(error).__name__}: {error}")
    assert 0.1 * ROUNDS < read < 0.9 * ROUNDS
