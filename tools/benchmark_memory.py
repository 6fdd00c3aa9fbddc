"""Peak memory of one search in a process of its own, for `tools/benchmark.py memory`.

    python tools/benchmark_memory.py FOLDER ROWS SOURCE BEAM STEPS DTYPE

FOLDER holds a model. Prints JSON: "peak", the bytes by which the greatest memory in use exceeds
what was in use before the model was opened; "needed", what weights and caches take by their shapes;
and "seconds".
"""

import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from benchmark_floor import held_in_search
from benchmark_load import forget_peak, memory

import bart_hk
import bart_hk.hub  # what takes memory whatever is loaded
from bart_hk.generation.generator import STAGES


def main() -> None:
    folder, dtype = Path(sys.argv[1]), sys.argv[6]
    rows, source, beam, steps = map(int, sys.argv[2:6])
    jax.block_until_ready(jax.numpy.zeros(3) + 1)
    forget_peak()
    before = memory("VmRSS")
    model = bart_hk.load(folder, dtype=dtype)
    opened = memory("VmHWM") - before
    ids = np.random.default_rng(0).integers(4, 50264, (rows, source))
    start = time.perf_counter()
    found = model.generate(
        list(ids), beam=beam, min_len=steps - 1, max_len_b=steps - 1, attention=False
    )
    seconds = time.perf_counter() - start
    assert all(len(h["tokens"]) == steps for row in found for h in row)
    room = next(size for size in STAGES if size >= steps)
    needed = held_in_search(model.config, rows, beam, source, room, model.model.dtype.itemsize)
    peak = memory("VmHWM") - before
    print(json.dumps({"peak": peak, "needed": needed, "seconds": seconds, "opened": opened}))


if __name__ == "__main__":
    main()
