"""Files of `torch.save`, read and written without torch: `read_torch`, `write_torch`.

Two containers hold the same kind of pickle: a zip file (torch >= 1.6) and, before that, a stream of
pickles followed by the storages. Source: `torch/serialization.py`.
"""

import mmap
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.errors import LFS_POINTER, CheckpointError, shown
from bart_hk.torch_format import objects, pickles, zip_container
from bart_hk.torch_format.objects import Namespace, Storage
from bart_hk.torch_format.pickles import Node, Program
from bart_hk.torch_format.writing import write_torch

__all__ = ["Namespace", "give_back", "mapped_file", "read_torch", "write_torch"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_MAX_EXPANSION = 16  # bytes of all arrays for each byte of the file: layers may share a storage
_SMALL = 16 << 20  # bytes that arrays may always have

Source = mmap.mmap


def read_torch(path: str | Path, *, only: Collection[str] | None = None) -> Any:
    """The object that `torch.save` wrote to `path`, with read-only arrays for tensors.

    Nothing that the file names is imported or run. Arrays lie over the mapped file, with the
    strides they were saved with; tensors that shared a storage still share it. bfloat16 is
    ml_dtypes', every other dtype numpy's. An `argparse.Namespace` becomes a `Namespace` (a dict),
    omegaconf's containers become dicts and lists, an enum's member its value, a torch.Size a tuple,
    a device its name, other objects of fairseq a `pickles.Symbol`, their name.

    Args:
        path: a zip or legacy file of `torch.save`; the content tells which.
        only: of a dict with names as keys, the keys that are wanted; the others are left out and
            their tensors are neither checked nor read. Everything that is returned from a zip
            file has been compared with its checksum; legacy files have none.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, truncated or no checkpoint, or it asks for something
            to be run; one line.
    """
    path = Path(path)
    source = _map(path)
    if source[:4] == zip_container.MAGIC:
        return _read_zip(source, path, only)
    return _read_legacy(source, path, only)


def mapped_file(array: np.ndarray) -> Source | None:
    """The file that `array` lies over, if it does."""
    source: Any = array
    while isinstance(source, np.ndarray):
        source = source.base
    return source if isinstance(source, mmap.mmap) else None


def give_back(array: np.ndarray) -> None:
    """Have the pages of the file that `array` lies over no longer count as this process's memory.

    It stays what it was: who looks at it again has them read again. Other arrays are left alone.
    """
    source = mapped_file(array)
    if source is None or not array.size:
        return
    low, high = np.lib.array_utils.byte_bounds(array)
    start = np.frombuffer(source, np.uint8, 1).ctypes.data
    first = (low - start) // mmap.PAGESIZE * mmap.PAGESIZE
    source.madvise(mmap.MADV_DONTNEED, first, high - start - first)


def _map(path: Path) -> Source:
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            raise CheckpointError(f"{path}: is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class _Container:
    """What both containers have in common; by itself it holds no storages."""

    def __init__(self, source: Source):
        self._source = source
        self._left = _MAX_EXPANSION * len(source) + _SMALL

    def storage(self, dtype: np.dtype, key: str, size: int) -> Storage:
        raise CheckpointError(f"refers to the storage {shown(key)} where there are none")

    def take(self, array_bytes: int) -> None:
        self._left -= array_bytes
        if self._left < 0:
            raise CheckpointError(
                f"describes tensors of more than {_MAX_EXPANSION} times the file's size"
            )


# --- Zip ------------------------------------------------------------------------------------------


class _Zip(_Container):
    def __init__(self, source: Source, members: dict[str, zip_container.Member], folder: str):
        super().__init__(source)
        self._members = members
        self._folder = folder
        self.used: dict[str, zip_container.Member] = {}

    def storage(self, dtype: np.dtype, key: str, size: int) -> Storage:
        member = self._members.get(f"{self._folder}/data/{key}")
        if member is None:
            raise CheckpointError(f"refers to the storage {shown(key)}, which the file lacks")
        if size > member.size:
            raise CheckpointError(
                f"claims {size} bytes for {member.name}, which has {member.size} of them"
            )
        self.used[key] = member
        return Storage(self._source, member.begin, size, dtype)


def _read_zip(source: Source, path: Path, only: Collection[str] | None) -> Any:
    members = zip_container.read_members(source, path)
    folder = next(iter(members), "").partition("/")[0]
    data = members.get(f"{folder}/data.pkl")
    if data is None:
        raise CheckpointError(f"{path}: is a zip file without data.pkl, so not one of torch.save")
    if f"{folder}/constants.pkl" in members:
        raise CheckpointError(f"{path}: is a TorchScript program, not a checkpoint")
    about = [data, *(m for m in (members.get(f"{folder}/byteorder"),) if m)]
    zip_container.check_members(source, about, path)
    for member in about[1:]:
        if source[member.begin : member.begin + min(member.size, 16)] != b"little":
            raise CheckpointError(f"{path}: was written on a big-endian machine")
    where = f"{path}: {data.name}"
    end = data.begin + data.size
    program = pickles.read(source, data.begin, end, objects.known, where)
    container = _Zip(source, members, folder)
    _keep(program.root, only)
    result = pickles.resolve(program.root, objects.rules(container), where)
    zip_container.check_members(source, container.used.values(), path)
    return result


def _keep(root: Any, only: Collection[str] | None) -> None:
    """Take all keys but `only` out of the mapping that `root` describes."""
    if only is not None and isinstance(root, Node) and root.pairs:
        pairs = zip(root.pairs[::2], root.pairs[1::2], strict=True)
        root.pairs = [
            part
            for key, value in pairs
            if isinstance(key, str) and key in only
            for part in (key, value)
        ]


# --- Legacy ---------------------------------------------------------------------------------------


class _Legacy(_Container):
    def __init__(self, source: Source, storages: dict[str, tuple[int, int]]):
        super().__init__(source)
        self._storages = storages  # (begin, size in bytes)

    def storage(self, dtype: np.dtype, key: str, size: int) -> Storage:
        if key not in self._storages:
            raise CheckpointError(f"refers to the storage {shown(key)}, which the file lacks")
        begin, found = self._storages[key]
        if found != size:
            raise CheckpointError(
                f"claims {size} bytes for storage {shown(key)}, which has {found}"
            )
        return Storage(self._source, begin, size, dtype)


def _read_legacy(source: Source, path: Path, only: Collection[str] | None) -> Any:
    def read(begin: int, what: str) -> Program:
        where = f"{path}: {what}"
        return pickles.read(source, begin, len(source), objects.known, where)

    def plain(program: Program, what: str) -> Any:
        return pickles.resolve(program.root, objects.rules(_Container(source)), what)

    if source[: len(LFS_POINTER)] == LFS_POINTER:
        raise CheckpointError(f"{path}: is a git-lfs pointer to the file: get it with git lfs pull")
    if source[:1] != b"\x80" or b"\x19." not in source[2:16]:
        raise CheckpointError(f"{path}: is no file of torch.save; it begins with {source[:12]!r}")
    magic = read(0, "its beginning")
    version = read(magic.end, "its version")
    if magic.root != _LEGACY_MAGIC or version.root != _LEGACY_VERSION:
        raise CheckpointError(f"{path}: is no file of torch.save")
    system = read(version.end, "its system")
    about = plain(system, f"{path}: its system")
    if not isinstance(about, dict) or about.get("little_endian") is not True:
        raise CheckpointError(f"{path}: was written on a big-endian machine")
    program = read(system.end, "its object")
    listed = read(program.end, "its list of storages")
    keys = plain(listed, f"{path}: its list of storages")
    storages = _storages(source, listed.end, keys, program, path)
    _keep(program.root, only)
    container = _Legacy(source, storages)
    return pickles.resolve(program.root, objects.rules(container), f"{path}: its object")


def _storages(
    source: Source, begin: int, keys: Any, program: Program, path: Path
) -> dict[Any, tuple[int, int]]:
    """Where the storages lie: each is its number of elements (8 bytes) and then the elements."""
    item_sizes: dict[Any, int] = {}
    for node in program.persistent:
        try:
            dtype, key, _, _ = objects.storage_id(node)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: its object {error}") from None
        item_sizes[key] = dtype.itemsize
    storages: dict[Any, tuple[int, int]] = {}
    position = begin
    listed: list[Any] = keys if isinstance(keys, list) else [None]
    for key in listed:
        if not isinstance(key, str) or key not in item_sizes or key in storages:
            raise CheckpointError(f"{path}: its list of storages is damaged")
        size = int.from_bytes(source[position : position + 8], "little") * item_sizes[key]
        position += 8
        if position + size > len(source):
            raise CheckpointError(
                f"{path}: is truncated: storage {shown(key)} has {size} bytes, "
                f"{max(0, len(source) - position)} are left"
            )
        storages[key] = position, size
        position += size
    return storages
