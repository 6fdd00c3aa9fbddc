"""Checkpoints as the real fairseq and torch write them, and what fairseq computes with them.

`trained.pt` comes out of `fairseq-train`, with its optimizer and its config. The others
hold small models in forms that fairseq's users have files in: `half_2019.pt` is what was saved in
2019 (the legacy container, a Namespace, q, k and v in one tensor, half precision, no version),
`omegaconf.pt` has a config of omegaconf's own objects and bfloat16, `heads.pt` has classification
heads, `mbart.pt` languages and pre-norm. `NAME.safetensors` holds the logits and the heads' for the
ids in `cases.json`.
"""

import contextlib
import io
import os
import random
import re
import sys
import tempfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _oracles import fairseq_bart, randomise
from _recording import input_hash, write_arrays, write_json
from fairseq import checkpoint_utils
from fairseq.models.bart.model import bart_large_architecture
from fairseq_cli import preprocess, train
from omegaconf import OmegaConf

SMALL: dict[str, Any] = {
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_ffn_embed_dim": 20,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "max_source_positions": 14,
    "max_target_positions": 14,
}
WORDS = [f"w{i}" for i in range(30)]
IDS = [[0, 7, 9, 5, 2], [0, 8, 2, 1, 1]]
PREVIOUS = [[2, 0, 7, 11], [2, 0, 6, 1]]


@contextlib.contextmanager
def working_in(folder: str) -> Any:
    """Paths in a checkpoint are then relative ones."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run(main: Any, *arguments: str) -> None:
    argv, sys.argv = sys.argv, ["fairseq", *arguments]
    try:
        main()
    finally:
        sys.argv = argv


def trained() -> bytes:
    """The checkpoint of a short training; at this rate the weights stay what they were drawn."""
    rng = random.Random(5)
    lines = [" ".join(rng.choices(WORDS, k=rng.randint(4, 9))) for _ in range(40)]
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    with tempfile.TemporaryDirectory() as folder, working_in(folder):
        Path("train.txt").write_text("\n".join(lines) + "\n")
        Path("dict.txt").write_text("".join(f"{word} 1\n" for word in WORDS))
        files = ("--trainpref=train.txt", "--srcdict=dict.txt", "--destdir=data")
        run(preprocess.cli_main, "--only-source", *files)
        noise = ("--mask=0.3", "--mask-length=span-poisson", "--replace-length=1", "--rotate=0")
        schedule = ("--optimizer=adam", "--lr=1e-9", "--max-update=2", "--batch-size=8")
        run(
            train.cli_main,
            "data",
            *("--task=denoising", "--arch=bart_base", "--criterion=cross_entropy", *options),
            *(*noise, "--tokens-per-sample=12", "--sample-break-mode=eos", *schedule),
            *("--cpu", "--disable-validation", "--no-epoch-checkpoints", "--no-progress-bar"),
            *("--save-dir=saved", "--dataset-impl=mmap", "--num-workers=0"),
        )
        return Path("saved", "checkpoint_last.pt").read_bytes()


def build(fields: dict[str, Any], heads: dict[str, tuple[int, int]]) -> Any:
    model = fairseq_bart(fields)
    for name, (classes, inner) in heads.items():
        model.register_classification_head(name, num_classes=classes, inner_dim=inner)
    model.eval()
    randomise(model, seed=5)
    return model


def as_of_2019(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    old = OrderedDict()
    for name, tensor in state.items():
        if match := re.fullmatch(r"(.+)\.q_proj\.(weight|bias)", name):
            parts = [state[f"{match[1]}.{p}_proj.{match[2]}"] for p in "qkv"]
            old[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"\.[kv]_proj\.|\.version$", name):
            old[name] = tensor
    return old


def arguments(fields: dict[str, Any], **more: Any) -> Namespace:
    """What fairseq's trainer saved in `args`: everything, the architecture's defaults as well."""
    args = Namespace(**{**fields, "arch": "bart_large", "data": "data", "seed": 1, **more})
    args.decoder_embed_dim = args.encoder_embed_dim
    del args.vocab_size
    bart_large_architecture(args)
    return args


def compute(model: Any) -> dict[str, np.ndarray]:
    ids, previous = torch.tensor(IDS), torch.tensor(PREVIOUS)
    arrays = {"logits": model(ids, None, previous)[0]}
    for name in model.classification_heads:
        # Each row on its own, as fairseq's `predict` of one sentence.
        rows = [ids[0, None], ids[1, None, :3]]
        heads = [model(row, None, _shifted(row), classification_head_name=name)[0] for row in rows]
        arrays[f"heads/{name}"] = torch.cat(heads)
    return {name: array.float().numpy() for name, array in arrays.items()}


def _shifted(row: torch.Tensor) -> torch.Tensor:
    return torch.cat([row[:, -1:], row[:, :-1]], dim=1)


def main(out: Path) -> None:
    cases: dict[str, Any] = {}

    def record(name: str, fields: dict[str, Any], model: Any) -> None:
        cases[name] = {"config": fields}
        with torch.no_grad():
            write_arrays(out / f"{name}.safetensors", compute(model), input_hash(fields, IDS))

    state = torch.load(io.BytesIO(trained()), weights_only=False)
    # Times and, since fairseq's noise has no seed, moments are never the same again.
    state["extra_state"] |= {"metrics": {}, "previous_training_time": 0.0}
    for moments in state["last_optimizer_state"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            moments[name].fill_(0.5)
    checkpoint_utils.torch_persistent_save(state, str(out / "trained.pt"))
    fields = {**SMALL, "vocab_size": len(state["model"]["encoder.embed_tokens.weight"])}
    model = fairseq_bart(fields)
    model.load_state_dict(state["model"], strict=True)
    record("trained", fields, model)

    fields = {**SMALL, "vocab_size": 40}
    model = build(fields, {}).half()
    content = {
        "args": arguments(fields, task="denoising", max_positions=14),
        "model": as_of_2019(model.state_dict()),
        "optimizer_history": [],
        "extra_state": {"train_iterator": {"epoch": 1}},
        "last_optimizer_state": None,
    }
    torch.save(content, out / "half_2019.pt", _use_new_zipfile_serialization=False)
    record("half_2019", fields, model.float())

    model = build(fields, {}).bfloat16()
    node = {**vars(arguments(fields)), "_name": "bart_base"}
    cfg = OmegaConf.create({"_name": None, "model": node, "task": {"_name": "denoising"}})
    torch.save({"args": None, "cfg": cfg, "model": model.state_dict()}, out / "omegaconf.pt")
    record("omegaconf", fields, model.float())

    heads = {"sentence_classification_head": (3, 16), "wide": (2, 20)}
    model = build(fields, heads)
    task = {"task": "sentence_prediction", "num_classes": 3, "max_positions": 512}
    content = {"args": arguments(fields, **task), "model": model.state_dict()}
    checkpoint_utils.torch_persistent_save(content, str(out / "heads.pt"))
    record("heads", fields, model)

    pre_norm = {"encoder_normalize_before": True, "decoder_normalize_before": True}
    fields = {**fields, **pre_norm, "no_scale_embedding": False}
    model = build(fields, {})
    task = {"task": "multilingual_denoising", "langs": "en_XX,ro_RO", "add_lang_token": True}
    plain = {"model": arguments(fields, **task), "task": {"_name": task["task"], **task}}
    content = {"args": None, "cfg": plain, "model": model.state_dict()}
    checkpoint_utils.torch_persistent_save(content, str(out / "mbart.pt"))
    record("mbart", fields, model)

    content = {"cases": cases, "ids": IDS, "prev_output_tokens": PREVIOUS}
    write_json(out / "cases.json", content, input_hash(SMALL, IDS, PREVIOUS))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
