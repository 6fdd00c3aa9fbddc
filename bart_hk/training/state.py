"""What a run needs to go on after a kill, on disk: verified when read, whole or not there at all.

    save_dir/training/run.json               what the run is, to refuse going on with another
    save_dir/training/update_120/            one state: arrays/ (of orbax), progress.json, and
                                             manifest.json (size and SHA-256 of every other file)

orbax writes and reads the arrays. It restores a file with a flipped bit without a word: hence the
manifest, which is looked at first.
"""

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bart_hk.checkpoint import files
from bart_hk.training.stopping import uninterrupted

_log = logging.getLogger(__name__)

_ARRAYS = "arrays"
_PROGRESS = "progress.json"
_MANIFEST = "manifest.json"

_LARGEST_FILE = 1 << 30  # bytes; those of orbax have up to 2 GiB

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
    path = folder / f"update_{update}"
    states = [state for state in _states(folder) if state != path]
    for old in states[: max(0, len(states) - KEPT + 1)]:
        shutil.rmtree(old)
    arrays = {name: np.asarray(leaf) for name, leaf in _named_leaves(tree)}
    with files.replacing(path) as staging:
        _write_arrays(staging / _ARRAYS, arrays)
        files.write_json(staging / _PROGRESS, progress)
        manifest = {name: _measure(staging / name) for name in _files(staging)}
        files.write_json(staging / _MANIFEST, manifest)
    for name in {*_files(path)} - {*manifest, _MANIFEST}:
        (path / name).unlink()  # saved at this update before: orbax's names are always new


def load(folder: Path, tree: Any) -> tuple[Any, dict[str, Any]] | None:
    """The newest state that is undamaged, or None where there is no state.

    Args:
        folder: holds the states.
        tree: like the one that was saved, in structure, shapes and dtypes.

    Raises:
        ValueError: every state is damaged, or holds another tree; orbax is not installed.
    """
    _checkpointer()  # a run begins with this: not to find out at its first save
    states = _states(folder)
    for number, path in reversed(list(enumerate(states))):
        fault = _fault(path)
        if fault is None:
            for damaged in states[number + 1 :]:
                shutil.rmtree(damaged)
            return _read(path, tree)
        _log.warning("%s is damaged (%s): going back to the state before", path, fault)
    if states:
        raise ValueError(f"every state in {folder} is damaged; remove it to begin again")
    return None


def peek(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The newest undamaged state of another run, by the names of its leaves; nothing is changed.

    Raises:
        ValueError: there are states, and every one is damaged.
    """
    found = sorted(folder.glob("update_*"), key=_number, reverse=True)
    for path in found:
        fault = _fault(path)
        if fault is None:
            return _read_arrays(path / _ARRAYS), files.read_json(path / _PROGRESS)
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
    """Folders of states, oldest first; half-written ones have other names until they are whole."""
    found = sorted(folder.glob("update_*"), key=_number)
    for path in found:
        files.finish_replacing(path)
    return found


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
        for name in (_PROGRESS, *manifest):
            if not (path / name).exists():
                return f"{name} is missing"
            if _measure(path / name) != manifest.get(name):
                return f"{name} is not what was written"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def _read(path: Path, tree: Any) -> tuple[Any, dict[str, Any]]:
    arrays = _read_arrays(path / _ARRAYS)
    if arrays.keys() != {name for name, _ in _named_leaves(tree)}:
        raise ValueError(f"{path} holds the state of another model or optimizer")
    leaves = []
    for name, leaf in _named_leaves(tree):
        if arrays[name].shape != leaf.shape:
            raise ValueError(f"{path}: {name} has shape {arrays[name].shape}, not {leaf.shape}")
        leaves.append(arrays[name].astype(leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(tree), leaves), files.read_json(path / _PROGRESS)


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    _check_room(path.parent, sum(array.nbytes for array in arrays.values()))
    try:
        with uninterrupted(), _checkpointer() as orbax:  # else its threads print tracebacks
            orbax.save(path.absolute(), arrays)
    except ValueError as error:  # so tensorstore says that the disk has become full
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def _check_room(folder: Path, size: int) -> None:
    """Raises OSError where `size` bytes have no room in `folder`, before anything is written.

    When a write of orbax's fails, its others print a traceback each, whenever they end.
    """
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    with contextlib.ExitStack() as reserved:  # which a quota or a limit may forbid
        for done in range(0, size, _LARGEST_FILE):
            file = reserved.enter_context(tempfile.TemporaryFile(dir=folder))
            try:
                os.posix_fallocate(file.fileno(), 0, min(size - done, _LARGEST_FILE))
            except OSError as error:
                if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):  # not on this file system
                    return
                raise


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with uninterrupted(), _checkpointer() as orbax:
        return orbax.restore(path.absolute())


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        raise ValueError("training needs orbax: pip install 'bart_hk[train]'") from None
    # It tells of every step of a save, and of an error, which it raises, once for each thread.
    account = logging.getLogger("absl")
    level = account.level
    account.setLevel(logging.CRITICAL)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
            yield checkpointer
    finally:
        account.setLevel(level)


def _files(folder: Path) -> list[str]:
    paths = (os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file())
    return sorted(paths)


def _named_leaves(tree: Any) -> list[tuple[str, Any]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
