"""Fixtures for every room of the tests."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

GOLDENS = Path(__file__).parent / "goldens"

# A shell makes deaf to interrupts what it runs in the background, and whoever that starts: tests
# interrupt themselves and commands, so they hear.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """Programs hold memory maps, of which Linux gives a process 65,530: one module of searches
    takes two thirds of them, and who runs out of them is killed."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Any]]:
    """`golden("text/lines.json")` or `golden("model/post_norm.safetensors")`: an oracle's recorded
    answers (`tools/make_goldens.py`), as a dictionary; of a .safetensors file, its arrays."""

    def read(name: str) -> dict[str, Any]:
        path = GOLDENS / name
        if path.suffix == ".safetensors":
            return load_file(path)
        return json.loads(path.read_text(encoding="utf-8"))

    return read
