"""How every recorder writes what an oracle computed, so that `make_goldens.py` can compare it.

A golden is a `.json` (ids, text, a few numbers) or a `.safetensors` file (arrays). Each names the
command that made it, the versions of the oracle and a hash of the input it was computed from.
"""

import hashlib
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

_ORACLES = (
    *("fairseq-fixed", "torch", "transformers", "flax", "tokenizers", "sentencepiece", "numpy"),
)


def input_hash(*inputs: Any) -> str:
    """SHA-256 of files (Path), bytes, text, arrays, or anything that `json.dumps` takes."""
    digest = hashlib.sha256()
    for item in inputs:
        if isinstance(item, Path):
            item = item.read_bytes()
        elif isinstance(item, np.ndarray):
            item = f"{item.dtype}{item.shape}".encode() + np.ascontiguousarray(item).tobytes()
        elif not isinstance(item, bytes):
            item = json.dumps(item, sort_keys=True).encode()
        digest.update(hashlib.sha256(item).digest())
    return digest.hexdigest()


def made_by(inputs_sha256: str) -> dict[str, Any]:
    """Where a golden comes from: command, versions of what computed it, hash of the input."""
    versions = {"python": platform.python_version()}
    for name in _ORACLES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    command = f"python tools/goldens/{Path(sys.argv[0]).name} OUT_DIR"
    return {"command": command, "versions": versions, "input_sha256": inputs_sha256}


def write_json(path: Path, content: dict[str, Any], inputs_sha256: str) -> None:
    """Write `content` with its `made_by`; floats are kept exactly."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"made_by": made_by(inputs_sha256), **content}
    path.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_arrays(path: Path, arrays: dict[str, np.ndarray], inputs_sha256: str) -> None:
    """Write named arrays; `made_by` goes to the file's metadata as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(contiguous, path, {"made_by": json.dumps(made_by(inputs_sha256))})
