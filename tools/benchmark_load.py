"""One loading of one model in a process of its own, for `tools/benchmark.py load`.

    python tools/benchmark_load.py PEER FOLDER

PEER is "bart_hk" (`bart_hk.load`, tokenizer included) or "torch" (the file's own reader, then
`load_state_dict` into a model that is there already). FOLDER holds model.pt or model.safetensors.
Prints JSON: "seconds", and "peak", the bytes by which the greatest memory in use (mapped files
included) exceeds what was in use before.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def with_bart_hk(folder: Path) -> Callable[[], Any]:
    import jax

    import bart_hk
    import bart_hk.hub  # what takes time and memory whatever is loaded

    jax.block_until_ready(jax.numpy.zeros(3) + 1)
    return lambda: jax.block_until_ready(bart_hk.load(folder).params)


def with_torch(folder: Path) -> Callable[[], Any]:
    import torch
    from safetensors.torch import load_file
    from transformers import BartConfig, BartModel

    model = BartModel(BartConfig())  # bart.large's sizes are the defaults
    checkpoint = folder / "model.pt"

    def load() -> Any:
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=False)["model"]
        else:
            state = load_file(folder / "model.safetensors")
        found = model.load_state_dict(
            {name.removeprefix("model."): tensor for name, tensor in state.items()}, strict=False
        )
        tied = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
        assert set(found.missing_keys) <= set(tied), found.missing_keys
        return model

    return load


def memory(name: str) -> int:
    """Bytes that are in use ("VmRSS"), or were at most since `forget_peak` ("VmHWM").

    Linux's own count: what `resource` says may still be that of the program that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    peer, folder = sys.argv[1], Path(sys.argv[2])
    load = {"bart_hk": with_bart_hk, "torch": with_torch}[peer](folder)
    forget_peak()
    before, start = memory("VmRSS"), time.perf_counter()
    model = load()
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": memory("VmHWM") - before}))
    del model


if __name__ == "__main__":
    main()
