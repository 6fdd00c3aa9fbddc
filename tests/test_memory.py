"""Freed memory stays with the process."""

import subprocess
import sys

# Page faults of twenty calls, each of which needs 128 MB in pieces of 32 MB, after thirty others:
# the heap finds its size in some ten calls.
CALLS = """
import resource, sys
import jax, jax.numpy as jnp
from bart_hk.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
program = jax.jit(lambda x: [jnp.sin(x + i) for i in range(4)])
x = jnp.ones(2**23)
for call in range(50):
    if call == 30:
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    jax.block_until_ready(program(x))
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""


def faults(how: str) -> int:
    run = [sys.executable, "-c", CALLS, how]
    return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def test_pages_are_not_made_anew():
    kept, plain = faults("keep"), faults("plain")
    assert kept < 2000  # 128 MB are 32,768 pages, at each call
    # Where the system gives pages of 2 MB by itself, there are few in any case.
    assert plain > 10 * kept or plain < 2000
