"""Live comparisons: the oracle (real fairseq, transformers, torch) runs as a subprocess."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def oracle() -> Callable[[str, Path], None]:
    """`oracle("oracle_model.py", folder)` runs that script beside this file on a folder, through
    which it exchanges files with the test. `$BART_HK_ORACLE` names the interpreter."""
    # Relative to the repository; not resolved, for a virtual environment's python is a link.
    return _runner(str(ROOT / os.environ["BART_HK_ORACLE"]))


@pytest.fixture(scope="session")
def peers() -> Callable[[str, Path], None]:
    """The same in `.venv-peers`, which has Flax; `$BART_HK_PEERS` names its interpreter."""
    default = ROOT / ".venv-peers" / "bin" / "python"
    return _runner(str(ROOT / os.environ.get("BART_HK_PEERS", default)))


def _runner(interpreter: str) -> Callable[[str, Path], None]:
    def run(script: str, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools" / "goldens")}
        command = [interpreter, str(Path(__file__).parent / script), str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]

    return run
