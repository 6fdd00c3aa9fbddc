"""What a model takes while it is loaded: the bounds that the README names."""

import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import bart_hk
from bart_hk.checkpoint.fairseq_file import write_fairseq
from bart_hk.checkpoint.huggingface import write_model
from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import BARTConfig
from bart_hk.text import TextEncoder, train_bpe
from bart_hk.torch_format import write_torch

ROOT = Path(__file__).parents[2]

# A small model first, so that what is there once whatever is loaded does not count. The greatest
# memory in use (mapped files included) is the kernel's own count since it was asked to forget it.
LOAD = """
import json, pathlib, sys
import jax
import bart_hk

def status(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))

small, large = sys.argv[1:]
kept = jax.block_until_ready(bart_hk.load(small).params)
before = status("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
params = jax.block_until_ready(bart_hk.load(large).params)
peak = status("VmHWM") - before
size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
total = sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(params))
print(json.dumps({"peak": peak, "size": size, "sum": total}))
"""
BOUND = 1.3


def write(folder: Path, config: BARTConfig, text: TextEncoder) -> float:
    """The same model in every format; the sum of what it consists of."""
    rng = np.random.default_rng(0)
    params = {
        path: {name: rng.standard_normal(shape, np.float32) for name, shape in leaves.items()}
        for path, leaves in parameter_shapes(config).items()
    }
    write_fairseq(folder / "zip", config, params, text=text)
    write_model(folder / "safetensors", config, params, also=text.save)
    return sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return train_bpe(["the cat sat on the mat, the hat"] * 3, 280)


def config_of(text: TextEncoder, width: int, layers: int) -> BARTConfig:
    return BARTConfig(
        vocab_size=len(text.dictionary),
        encoder_embed_dim=width,
        encoder_ffn_embed_dim=4 * width,
        decoder_ffn_embed_dim=4 * width,
        encoder_layers=layers,
        decoder_layers=layers,
    )


@pytest.fixture(scope="module")
def folders(text, tmp_path_factory) -> tuple[Path, Path, float]:
    small, large = (tmp_path_factory.mktemp(name) for name in ("small", "large"))
    write(small, config_of(text, 64, 1), text)
    return small, large, write(large, config_of(text, 1024, 3), text)


@pytest.mark.parametrize("kind", ["zip", "safetensors"])
def test_the_bounds(folders, kind):
    """Peak memory while a model is loaded, as a multiple of its weights' size."""
    small, large, total = folders
    command = [sys.executable, "-c", LOAD, str(small / kind), str(large / kind)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["size"] > 300e6
    assert math.isclose(found["sum"], total, rel_tol=1e-5)
    factor = found["peak"] / found["size"]
    print(f"{kind}: {factor:.2f} times the weights")
    assert 0.9 < factor <= BOUND, found


@pytest.mark.parametrize("kind", ["fairseq", "native", "torch"])
def test_what_is_loaded_no_longer_needs_its_file(text, tmp_path, kind):
    """Parameters are nowhere views of a file that somebody may write to next."""
    config = config_of(text, 128, 1)
    write(tmp_path, config, text)
    place = tmp_path / ("zip" if kind == "fairseq" else "safetensors")
    file = place / ("model.pt" if kind == "fairseq" else "model.safetensors")
    if kind == "torch":
        from safetensors.numpy import load_file

        state = load_file(file)
        file.unlink()
        file = place / "pytorch_model.bin"
        write_torch(file, state)
    params = bart_hk.load(place).params
    before = jax.tree.map(np.array, params)
    with open(file, "r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    jax.tree.map(np.testing.assert_array_equal, params, before)
