"""Record the oracles' answers again: `python tools/make_goldens.py [--check] [NAME ...]`.

Each recorder `tools/goldens/NAME.py OUT_DIR` runs in the oracle's interpreter (real fairseq, torch
and transformers; or that of the peers, with Flax) and fills the folder `tests/goldens/NAME`. With
`--check` nothing in the repository changes: the recorders write to a temporary folder, and any
difference from what is committed fails. Integers, text and structure must be equal; floats, which
depend on the machine, may differ by `RTOL` and `ATOL`. Versions are not compared: the check is
there to find out whether newer ones give the same numbers.

What cannot be made again bit for bit (weights trained for a minute) is an input, not a golden: it
is kept in `tests/goldens/inputs`, and the recorders that use it hash it.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from bart_hk.checkpoint.msgpack_file import ArrayFile
from bart_hk.torch_format import read_torch

ROOT = Path(__file__).resolve().parent.parent
RECORDERS = ROOT / "tools" / "goldens"
GOLDENS = ROOT / "tests" / "goldens"
PEERS = {"flax_models"}  # recorders that run in .venv-peers, since flax cannot be beside fairseq
RTOL = 1e-4
ATOL = 1e-5


def recorder_names() -> list[str]:
    return sorted(p.stem for p in RECORDERS.glob("*.py") if not p.name.startswith("_"))


def json_differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Where two JSON values differ, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if key in old and key in new:
                yield from json_differences(old[key], new[key], f"{where}/{key}")
            else:
                yield f"{where}/{key} is only in the {'old' if key in old else 'new'} one"
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{where} has {len(new)} entries, not {len(old)}"
        for i, (a, b) in enumerate(zip(old, new, strict=False)):
            yield from json_differences(a, b, f"{where}/{i}")
    elif isinstance(old, float) and isinstance(new, float):
        same = math.isclose(old, new, rel_tol=RTOL, abs_tol=ATOL)
        if not same and not (math.isnan(old) and math.isnan(new)):
            yield f"{where} is {new!r}, not {old!r}"
    elif type(old) is not type(new) or old != new:
        yield f"{where} is {new!r}, not {old!r}"


def read_golden(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A golden's JSON part (less the versions) and its arrays."""
    arrays: dict[str, np.ndarray] = {}
    if path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, "numpy") as file:
            content = {"made_by": json.loads(file.metadata()["made_by"])}
            arrays = {name: file.get_tensor(name) for name in list(file.keys())}
    elif path.suffix == ".pt":  # a golden beside it says what made it
        content = {"made_by": {"versions": {}}, "object": _without_arrays(read_torch(path), arrays)}
    elif path.suffix in (".msgpack", ".dat"):  # as .pt
        file = ArrayFile(path)
        content = {"made_by": {"versions": {}}}
        arrays = {name: file.read(name) for name in file.names()}
    else:
        raise ValueError(f"{path}: a golden is a .json, .safetensors, .pt, .msgpack or .dat file")
    content["made_by"].pop("versions")
    return content, arrays


def _without_arrays(value: Any, arrays: dict[str, np.ndarray], where: str = "") -> Any:
    """`value` as JSON, with names instead of the arrays in it, which go to `arrays`."""
    if isinstance(value, dict):
        pairs = {repr(key): part for key, part in value.items()}
        return {k: _without_arrays(part, arrays, f"{where}/{k}") for k, part in pairs.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(v, arrays, f"{where}/{i}") for i, v in enumerate(value)]
    if isinstance(value, np.ndarray):
        arrays[where] = value
        return where
    return value if isinstance(value, int | float | str | None) else repr(value)


def differences(old_path: Path, new_path: Path) -> Iterator[str]:
    """Where two golden files differ, one line each."""
    (old_json, old_arrays), (new_json, new_arrays) = read_golden(old_path), read_golden(new_path)
    yield from json_differences(old_json, new_json)
    for name in sorted(old_arrays.keys() | new_arrays.keys()):
        if name not in old_arrays or name not in new_arrays:
            yield f"{name} is only in the {'old' if name in old_arrays else 'new'} one"
            continue
        old, new = old_arrays[name], new_arrays[name]
        if (old.dtype, old.shape) != (new.dtype, new.shape):
            yield f"{name} is {new.dtype}{new.shape}, not {old.dtype}{old.shape}"
        elif np.issubdtype(old.dtype, np.floating):
            if not np.allclose(new, old, rtol=RTOL, atol=ATOL, equal_nan=True):
                yield f"{name} differs by up to {np.nanmax(np.abs(new - old)):.3g}"
        elif not np.array_equal(old, new):
            yield f"{name} differs"


def folder_differences(old: Path, new: Path) -> Iterator[str]:
    """Where two folders of goldens differ, one line each."""
    old_files = {p.relative_to(old).as_posix() for p in old.rglob("*") if p.is_file()}
    new_files = {p.relative_to(new).as_posix() for p in new.rglob("*") if p.is_file()}
    for name in sorted(old_files - new_files):
        yield f"{name}: committed, but no longer recorded"
    for name in sorted(new_files - old_files):
        yield f"{name}: recorded, but not committed"
    for name in sorted(old_files & new_files):
        for line in differences(old / name, new / name):
            yield f"{name}: {line}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="recorders to run (default: all of them)")
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument(
        "--oracle",
        default=os.environ.get("BART_HK_ORACLE", str(ROOT / ".venv-oracle" / "bin" / "python")),
        help="interpreter with fairseq, torch and transformers (default: $BART_HK_ORACLE)",
    )
    parser.add_argument(
        "--peers",
        default=os.environ.get("BART_HK_PEERS", str(ROOT / ".venv-peers" / "bin" / "python")),
        help=f"interpreter with flax, of {', '.join(sorted(PEERS))} (default: $BART_HK_PEERS)",
    )
    args = parser.parse_args(argv)
    known = recorder_names()
    unknown = sorted(set(args.names) - set(known))
    if unknown:
        parser.error(f"no recorder {unknown[0]!r}; there are: {', '.join(known)}")
    failed = False
    for name in args.names or known:
        with tempfile.TemporaryDirectory() as temporary:
            out = Path(temporary) / name
            out.mkdir()
            interpreter = args.peers if name in PEERS else args.oracle
            command = [interpreter, str(RECORDERS / f"{name}.py"), str(out)]
            subprocess.run(command, check=True, cwd=ROOT)
            found = list(folder_differences(GOLDENS / name, out)) if args.check else []
            if not args.check:
                shutil.rmtree(GOLDENS / name, ignore_errors=True)
                shutil.copytree(out, GOLDENS / name)
        for line in found:
            print(f"{name}/{line}", file=sys.stderr)
        print(f"{name}: {'DIFFERS' if found else 'as committed' if args.check else 'recorded'}")
        failed |= bool(found)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
