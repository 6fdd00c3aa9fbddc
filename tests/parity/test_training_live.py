"""Updates of models and batches drawn anew each time, beside the real fairseq's Trainer."""

import json
import random

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bart_hk.checkpoint.fairseq import to_fairseq
from bart_hk.config import BARTConfig
from bart_hk.model import BART
from tests.training.updates import check_case

FIELDS = {
    "vocab_size": 97,
    "encoder_embed_dim": 24,
    "encoder_ffn_embed_dim": 40,
    "encoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_ffn_embed_dim": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "max_source_positions": 30,
    "max_target_positions": 30,
}
CASES = {
    "cross_entropy": {
        "fields": FIELDS,
        "criterion": {"_name": "cross_entropy"},
        "optimization": {"update_freq": [2]},
    },
    "label_smoothed": {
        "fields": FIELDS | {"share_all_embeddings": False, "activation_fn": "relu"},
        "criterion": {
            "_name": "label_smoothed_cross_entropy",
            "label_smoothing": 0.1,
            "ignore_prefix_size": 2,
            "report_accuracy": True,
        },
        "optimization": {"clip_norm": 0.5, "update_freq": [2]},
        "ema": {"store_ema": True, "ema_decay": 0.7, "ema_start_update": 2},
    },
    "sentence_avg_pre_norm": {
        "fields": FIELDS | {"encoder_normalize_before": True, "decoder_normalize_before": True},
        "criterion": {"_name": "cross_entropy", "sentence_avg": True},
        "optimization": {"clip_norm": 1.0, "update_freq": [2]},
    },
}


def random_batch(draw: random.Random, vocabulary: int) -> dict[str, list]:
    rows = draw.randint(2, 4)

    def padded(ids: list[list[int]]) -> list[list[int]]:
        return [row + [1] * (24 - len(row)) for row in ids]

    def sentence() -> list[int]:
        return [0, *(draw.randrange(4, vocabulary) for _ in range(draw.randint(2, 20))), 2]

    target = [sentence() for _ in range(rows)]
    return {
        "src_tokens": padded([sentence() for _ in range(rows)]),
        "prev_output_tokens": padded([[2, *row[:-1]] for row in target]),
        "target": padded(target),
    }


@pytest.mark.parametrize("name", CASES)
def test_updates_are_fairseqs(oracle, tmp_path, name):
    seed = random.randrange(10**6)
    draw = random.Random(seed)
    config = BARTConfig(**CASES[name]["fields"])
    first, second = (random_batch(draw, config.vocab_size) for _ in range(2))
    case = CASES[name] | {
        "lr": 1e-3,
        "optimizer": {"adam_betas": "(0.9, 0.98)", "adam_eps": 1e-6, "weight_decay": 0.05},
        "lr_scheduler": {"warmup_updates": 1, "total_num_update": 8},
        "updates": [[first, second], [second], [first, second]],
    }
    params = jax.device_get(BART(config).init(jax.random.key(seed)))
    state = {name: np.ascontiguousarray(a) for name, a in to_fairseq(params, config).items()}
    save_file(state, tmp_path / "before.safetensors")
    (tmp_path / "case.json").write_text(json.dumps(case))
    oracle("oracle_training.py", tmp_path)
    found = json.loads((tmp_path / "found.json").read_text())
    arrays = load_file(tmp_path / "after.safetensors")
    before = {f"before/{name}": array for name, array in state.items()}
    try:
        check_case(case | found, before | arrays)
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from None
