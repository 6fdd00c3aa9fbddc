"""A short run of the fuzzer on every kind of file; and it notices what it is there to notice.

It forks, so it runs in a process of its own, without the threads of jax.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["zip", "legacy", "safetensors", "msgpack", "config", "tar", "zip-archive"]


@pytest.mark.parametrize("kind", KINDS)
def test_short_run(tmp_path, kind):
    options = ["--mutations", "120", "--kind", kind, "--keep", str(tmp_path)]
    command = [sys.executable, str(ROOT / "tools" / "fuzz.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    refused, read = (int(done.stdout.split(f" {w}")[0].split()[-1]) for w in ("refused", "read"))
    assert refused + read == 120 and refused > 20 and read > 0, done.stdout
    assert list(tmp_path.iterdir()) == []


BROKEN = """
import os, signal, sys
sys.path.insert(0, "tools")
import fuzz

def hang():
    while True:
        pass

def does(path):
    DOES

class Broken(fuzz.Safetensors):
    def __init__(self, folder):
        super().__init__(folder)
        self.read = does

assert list(fuzz.KINDS) == KINDS
fuzz.KINDS["safetensors"] = Broken
fuzz.SECONDS = 1
sys.exit(fuzz.main(["--mutations", "1", "--kind", "safetensors", "--keep", sys.argv[1]]))
"""


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("{}['x']", "safetensors 0 (x.safetensors): KeyError: 'x' ("),
        ("raise fuzz.CheckpointError('a\\nb')", "a message of several lines"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "the process ended with status 9"),
        ("hang()", "TimeoutError: took more than 1 s"),
        ("bytearray(3 << 30)", "MemoryError"),
    ],
)
def test_what_goes_wrong_is_noticed_and_kept(tmp_path, does, said):
    program = BROKEN.replace("DOES", does).replace("== KINDS", f"== {KINDS!r}")
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1, done.stderr
    assert said in done.stdout and "1 failed" in done.stdout
    assert any(p.name.startswith("safetensors-0-") for p in tmp_path.iterdir())
