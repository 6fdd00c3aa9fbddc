"""A few updates of small BARTs by the real fairseq's Trainer, and what its criteria give.

`cases.json` has each case's options, batches, gradient norms, rates and criteria's sums;
`CASE.safetensors` the parameters before (`before/...`) and after (`weights/...`), and their moving
average (`ema/...`), under fairseq's names; and the average of the token table as fairseq makes it
if one lets it (`ema_unpatched/...`).
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from _oracles import fairseq_bart, randomise
from _recording import input_hash, write_arrays, write_json
from _training_oracle import train
from model import PRE_NORM, SMALL, make_ids

TABLE = "encoder.embed_tokens.weight"


def batches() -> list[dict[str, list]]:
    """Two batches that differ in their rows and in their number of tokens."""
    first = make_ids()
    second = {name: rows[:2][::-1] for name, rows in first.items()}
    return [first, second]


def cases() -> dict[str, dict[str, Any]]:
    first, second = batches()
    return {
        "plain": {
            "fields": {**SMALL, "encoder_layers": 2},
            "lr": 1e-3,
            "optimizer": {"adam_eps": 1e-6},
            "lr_scheduler": {"warmup_updates": 0, "total_num_update": 10},
            "optimization": {},
            "criterion": {"_name": "cross_entropy"},
            "updates": [[first]] * 3,
        },
        "recipe": {  # what BART was trained with, but for the numbers
            "fields": {**SMALL, "decoder_layers": 2},
            "lr": 3e-3,
            "optimizer": {"adam_betas": "(0.9, 0.98)", "adam_eps": 1e-6, "weight_decay": 0.01},
            "lr_scheduler": {"warmup_updates": 2, "total_num_update": 9, "power": 2.0},
            "optimization": {"clip_norm": 0.1, "update_freq": [2]},
            "ema": {"store_ema": True, "ema_decay": 0.9, "ema_start_update": 2},
            "criterion": {
                "_name": "label_smoothed_cross_entropy",
                "label_smoothing": 0.1,
                "report_accuracy": True,
            },
            "updates": [[first, second], [second, first], [first, second], [second]],
        },
        "sentences": {
            "fields": {**SMALL, **PRE_NORM},
            # Low, for rounding is all the gradient that a key's bias has, and Adam magnifies it.
            "lr": 5e-4,
            "optimizer": {"adam_eps": 1e-6},
            "lr_scheduler": {"warmup_updates": 0, "total_num_update": 20},
            "optimization": {"clip_norm": 5.0},
            "ema": {"store_ema": True, "ema_decay": 0.6, "ema_update_freq": 2},
            "criterion": {
                "_name": "label_smoothed_cross_entropy",
                "label_smoothing": 0.2,
                "ignore_prefix_size": 1,
                "sentence_avg": True,
                "report_accuracy": True,
            },
            "updates": [[first], [second], [first], [second], [first]],
        },
    }


def main(out: Path) -> None:
    recorded = cases()
    for seed, (name, case) in enumerate(recorded.items()):
        model = fairseq_bart(case["fields"])
        randomise(model, seed)
        state = {k: tensor.clone() for k, tensor in model.state_dict().items()}
        digest = input_hash(case)
        found = train(case, state)
        before = {f"before/{k}": tensor.numpy() for k, tensor in state.items()}
        kept = {k.partition("/")[2] for k in found["arrays"]}
        before = {k: array for k, array in before.items() if k.partition("/")[2] in kept}
        arrays: dict[str, np.ndarray] = found.pop("arrays")
        if "ema" in case:
            alone = train(case, state, patched=False)["arrays"][f"ema/{TABLE}"]
            arrays[f"ema_unpatched/{TABLE}"] = alone
        write_arrays(out / f"{name}.safetensors", {**before, **arrays}, digest)
        case.update(found)
    write_json(out / "cases.json", {"cases": recorded}, input_hash(cases()))


if __name__ == "__main__":
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")  # torch's and fairseq's about themselves
    main(Path(sys.argv[1]))
