"""What a run needs to go on after a kill, on disk: verified when read, whole or not there at all.

    save_dir/training/run.json               what the run is, to refuse going on with another
    save_dir/training/update_120/            one state: tensors.safetensors, progress.json,
                                             manifest.json (sizes and SHA-256 of the other two)

A state is one process's tree, so one safetensors file holds it, and training needs nothing beyond
what a model does. orbax-checkpoint was weighed. It restores a file with a flipped bit without a
word, so that the manifest, and going back to the state before, would be ours all the same; what it
adds, writes of arrays that are spread over devices and hosts, has no use while a run has one
device; and tensorstore, protobuf and a dozen packages more would come with it. Where several hosts
train one model it is the right tool: behind `save` and `load`, under the same manifest.
"""

import contextlib
import fcntl
import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bart_hk.checkpoint import files

_log = logging.getLogger(__name__)

_TENSORS = "tensors.safetensors"
_PROGRESS = "progress.json"
_MANIFEST = "manifest.json"

KEPT = 2  # states: the newest, and the one before in case that is found damaged


def save(folder: Path, update: int, tree: Any, progress: dict[str, Any]) -> None:
    """Writes the state after `update` updates and removes those older than the one before.

    Args:
        folder: holds the states.
        update: names the state.
        tree: of float arrays and integer scalars.
        progress: everything else, as JSON can hold it.

    Raises:
        OSError: it could not be written; the states of before are unchanged.
    """
    states = _states(folder)
    for old in states[: max(0, len(states) - KEPT + 1)]:
        shutil.rmtree(old)
    arrays = {name: np.asarray(leaf) for name, leaf in _named_leaves(tree)}
    counters = {n: int(a) for n, a in arrays.items() if np.issubdtype(a.dtype, np.integer)}
    tensors = {n: (lambda a=a: a) for n, a in arrays.items() if n not in counters}
    with files.replacing(folder / f"update_{update}") as staging:
        files.write_tensors(staging / _TENSORS, tensors)
        files.write_json(staging / _PROGRESS, {"progress": progress, "counters": counters})
        content = {name: _measure(staging / name) for name in (_TENSORS, _PROGRESS)}
        files.write_json(staging / _MANIFEST, content)


def load(folder: Path, tree: Any) -> tuple[Any, dict[str, Any]] | None:
    """The newest state that is undamaged, or None where there is no state.

    Args:
        folder: holds the states.
        tree: like the one that was saved, in structure, shapes and dtypes.

    Raises:
        ValueError: every state is damaged, or holds another tree.
    """
    states = _states(folder)
    for path in reversed(states):
        fault = _fault(path)
        if fault is None:
            return _read(path, tree)
        _log.warning("%s is damaged (%s): going back to the state before", path, fault)
        shutil.rmtree(path)
    if states:
        raise ValueError(f"every state in {folder} is damaged; remove it to begin again")
    return None


def peek(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The newest undamaged state of another run, by the names of its leaves; nothing is changed.

    Raises:
        ValueError: there are states, and every one is damaged.
    """
    found = [path for path in folder.glob("update_*") if (path / _MANIFEST).exists()]
    for path in sorted(found, key=_number, reverse=True):
        fault = _fault(path)
        if fault is None:
            stored, tensors = files.read_json(path / _PROGRESS), files.TensorFile(path / _TENSORS)
            arrays = {name: tensors.read(name) for name in tensors.names()}
            arrays |= {name: np.asarray(value) for name, value in stored["counters"].items()}
            return arrays, stored["progress"]
        _log.warning("%s is damaged (%s): taking the state before", path, fault)
    if found:
        raise ValueError(f"every state in {folder} is damaged; begin with its model alone")
    return None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder, made if need be, for one process; a kill releases it.

    Raises:
        OSError: the folder cannot be written.
        ValueError: another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / "lock", "w")  # noqa: SIM115 - held until the block ends
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"checkpoint.save_dir={folder.parent} cannot be written: {reason}") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"checkpoint.save_dir={folder.parent} is in use by another run"
            ) from None
        yield


def _states(folder: Path) -> list[Path]:
    """Folders of complete states, oldest first; what a kill left half-written is removed."""
    found = []
    for path in folder.glob("update_*"):
        files.finish_replacing(path)
        if (path / _MANIFEST).exists():
            found.append(path)
        else:
            shutil.rmtree(path)
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("update_"))


def _measure(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def _fault(path: Path) -> str | None:
    """What is wrong with a state, if anything is."""
    try:
        manifest = files.read_json(path / _MANIFEST)
        for name in (_TENSORS, _PROGRESS):
            if not (path / name).exists():
                return f"{name} is missing"
            if _measure(path / name) != manifest.get(name):
                return f"{name} is not what was written"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _read(path: Path, tree: Any) -> tuple[Any, dict[str, Any]]:
    stored = files.read_json(path / _PROGRESS)
    tensors = files.TensorFile(path / _TENSORS)
    counters = stored["counters"]
    names = [name for name, _ in _named_leaves(tree)]
    if sorted(names) != sorted([*tensors.names(), *counters]):
        raise ValueError(f"{path} holds the state of another model or optimizer")
    leaves = []
    for name, leaf in _named_leaves(tree):
        array = np.asarray(counters[name]) if name in counters else tensors.read(name)
        if array.shape != leaf.shape:
            raise ValueError(f"{path}: {name} has shape {array.shape}, not {leaf.shape}")
        leaves.append(array.astype(leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(tree), leaves), stored["progress"]


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
