"""The two that `benchmark_finetune.py` measures, each in a process of its own.

`python tools/benchmark_finetune_peers.py PEER FOLDER THREADS DROPOUT` answers each line of its
input with a line of JSON: "check" makes three updates and gives their losses, "epoch" goes once
over the data and gives the seconds. Nothing outside the standard library is imported before a peer
asks for it, for they live in different environments.
"""

import importlib.metadata
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmark_finetune import CHECKED, settings

Functions = dict[str, Callable[[], Any]]  # "check" and "epoch"


def torch_loop(folder: Path, dropout: float) -> Functions:
    """As anybody writes it: pad, forward, backward, clip, Adam; transformers' default attention."""
    import torch
    import transformers

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    model = transformers.BartForSequenceClassification.from_pretrained(
        folder / "model", dropout=dropout
    )
    model.train()
    data = json.loads((folder / "batches.json").read_text())
    rows, epochs = data["rows"], iter(data["epochs"])
    adam = torch.optim.Adam(model.parameters(), lr=1e-5)

    def update(batch: list[int]) -> Any:
        length = max(len(rows[i]) for i in batch)
        ids = torch.tensor([rows[i] + [1] * (length - len(rows[i])) for i in batch])
        labels = torch.tensor([data["targets"][i] for i in batch])
        adam.zero_grad()
        out = model(input_ids=ids, attention_mask=(ids != 1).long(), labels=labels)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        return out.loss.detach()

    def epoch() -> None:
        for batch in next(epochs):
            update(batch).item()  # as whoever logs it reads it

    return {
        "check": lambda: [float(update(batch)) for batch in next(epochs)[:CHECKED]],
        "epoch": epoch,
    }


def our_loop(folder: Path, dropout: float, keep_memory: bool = True) -> Functions:
    """The trainer behind `bart-hk-train`."""
    from bart_hk.memory import keep_freed_memory
    from bart_hk.training.config import complete
    from bart_hk.training.loop import Run

    if keep_memory:  # as `bart_hk.train` does before a run
        keep_freed_memory()
    name = f"run-{dropout}-{keep_memory}"
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).mkdir()
    asked = settings(folder, name, dropout)
    run = Run(complete(asked), folder / name, threading.Event())

    def check() -> list[float]:
        run._epoch()
        lines = (folder / name / "log.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines[:CHECKED]]

    return {"check": check, "epoch": run._epoch}


def returning_loop(folder: Path, dropout: float) -> Functions:
    """Ours with `common.keep_memory=false`."""
    return our_loop(folder, dropout, keep_memory=False)


PEERS = {"bart_hk": our_loop, "bart_hk-returning": returning_loop, "torch": torch_loop}
PACKAGES = dict.fromkeys(PEERS, ("bart_hk", "jax")) | {"torch": ("transformers", "torch")}


def main(name: str, folder: Path, threads: int, dropout: float) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:threads]))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    functions = PEERS[name](folder, dropout)
    versions = {p: importlib.metadata.version(p) for p in PACKAGES[name]}
    answers.write(json.dumps({"versions": versions}) + "\n")
    for line in sys.stdin:
        begun = time.perf_counter()
        losses = functions[line.strip()]()
        seconds = time.perf_counter() - begun
        answers.write(json.dumps({"losses": losses, "seconds": seconds}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
