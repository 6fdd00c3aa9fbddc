"""Files that are there whole or not at all, and safetensors written one tensor at a time."""

import contextlib
import json
import math
import os
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from bart_hk.errors import LFS_POINTER, CheckpointError, shown

_SAVING = ".bart_hk_saving"  # being written: worth nothing if found later
_SAVED = ".bart_hk_saved"  # complete and on the disk: its files replace those of the directory

MAX_JSON = 16 << 20  # bytes; the largest is the index of a sharded model, 100 kB
MAX_HEADER = 16 << 20  # bytes of a safetensors header; that of bart.large takes 60 kB

MakeTensor = Callable[[], np.ndarray]

DTYPE_CODES = {  # of the floats that a model may be stored in, in .safetensors files
    np.dtype(np.float64): "F64",
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
}
_DTYPES = {code: dtype for dtype, code in DTYPE_CODES.items()}


@contextlib.contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """A new folder whose files, when the block ends, replace those of the same name in `directory`.

    All of them or none: a full disk, an exception or a kill at any moment leaves either every old
    file or every new one (`finish_replacing`, which readers call, completes a move that was cut
    short). Other files in `directory` stay. A directory that is not there yet appears when all of
    it is written.

    Raises:
        OSError: nothing could be written there; the files of before are unchanged.
    """
    new = not directory.exists()
    staging = directory.with_name(f".{directory.name}{_SAVING}") if new else directory / _SAVING
    try:
        finish_replacing(directory)
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        yield staging
        for path in [*staging.rglob("*"), staging]:
            _sync(path)
        if new:
            staging.rename(directory)
            _sync(directory.parent)
        else:
            staging.rename(directory / _SAVED)
            _sync(directory)
            finish_replacing(directory)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"cannot save in {directory}: {reason}; what was saved there before is unchanged"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def finish_replacing(directory: Path) -> None:
    """Complete the move of files that `replacing` had begun in `directory`, if there is one."""
    saved = directory / _SAVED
    if not saved.is_dir():
        return
    # Another process may be moving the same files: what is gone has arrived.
    for path in sorted(p for p in saved.rglob("*") if p.is_file()):
        target = directory / path.relative_to(saved)
        with contextlib.suppress(FileNotFoundError):
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    _sync(directory)
    shutil.rmtree(saved, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold what was written to the file or folder `path`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        FileNotFoundError: it is not there.
        CheckpointError: it is no JSON object.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_JSON + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path.parent} holds no {path.name}") from None
    if len(data) > MAX_JSON:
        raise CheckpointError(f"{path} has more than {MAX_JSON} bytes of JSON")
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object but a {type(content).__name__}")
    return content


def write_tensors(path: Path, tensors: Mapping[str, MakeTensor]) -> None:
    """Write a .safetensors file of tensors that are made one at a time.

    `safetensors.numpy.save_file` wants them all as bytes first, a second copy of the model. Format:
    8 bytes of header length, the header as JSON, then the data in the header's order.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for the format
    end = 0
    for name, make in tensors.items():
        array = make()
        begin, end = end, end + array.nbytes
        if array.dtype not in DTYPE_CODES:
            raise ValueError(f"{name} has dtype {array.dtype}; a model's tensors are floats")
        header[name] = {
            "dtype": DTYPE_CODES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header).encode()
    encoded = encoded.ljust(8 * math.ceil(len(encoded) / 8))  # so that the data is aligned
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for make in tensors.values():
            file.write(np.ascontiguousarray(make()).reshape(-1).view(np.uint8).data)


def aligned(size: int) -> np.ndarray:
    """Memory of `size` bytes, uint8, that jax takes over as it is: it begins at a multiple of 64.

    `jax.device_put` copies what begins elsewhere.
    """
    whole = np.empty(size + 64, np.uint8)
    start = -whole.ctypes.data % 64
    return whole[start : start + size]


class Tensors(Protocol):
    """A file of named tensors."""

    path: Path

    def names(self) -> list[str]: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def read(self, name: str) -> np.ndarray: ...


def read_at(descriptor: int, pieces: Iterable[tuple[int, int]]) -> np.ndarray:
    """The bytes of a file's pieces (offset, length), one after the other, in memory of their own.

    Raises ValueError where the file ends before.
    """
    pieces = tuple(pieces)
    buffer, filled = aligned(sum(length for _, length in pieces)), 0
    for begin, length in pieces:
        read = 0
        while read < length:  # the kernel reads 2 GB at once at most
            rest = buffer.data[filled : filled + length - read]
            some = os.preadv(descriptor, [rest], begin + read)
            if not some:
                raise ValueError("the file was cut short while it was read")
            read += some
            filled += some
    return buffer


class TensorFile:
    """A .safetensors file, read one tensor at a time.

    The library checks it; we read, since what it maps into memory stays there until all is read.
    """

    def __init__(self, path: Path):
        """Raises FileNotFoundError, or CheckpointError unless it is a whole safetensors file."""
        self.path = path
        try:
            file = open(path, "rb")  # kept open, so that all tensors are of one file
        except FileNotFoundError:
            raise FileNotFoundError(f"{path.parent} holds no {path.name}") from None
        weakref.finalize(self, file.close)
        start = file.read(len(LFS_POINTER))
        size = file.seek(0, os.SEEK_END)
        if start == LFS_POINTER:
            raise CheckpointError(
                f"{path} is a git-lfs pointer to the file: get it with git lfs pull"
            )
        claimed = int.from_bytes(start[:8], "little")
        # The library reads a header of up to 100 MB, which takes it a gigabyte.
        if claimed > min(size - 8, MAX_HEADER):
            raise CheckpointError(
                f"{path} is damaged or no safetensors file: it claims a header of {claimed} "
                f"bytes; it has {size} bytes, and a header at most {MAX_HEADER}"
            )
        try:
            self._file = safe_open(path, framework="numpy")
        except (SafetensorError, ValueError) as error:
            reason = shown(str(error))
            raise CheckpointError(f"{path} is damaged or no safetensors file: {reason}") from None
        file.seek(8)
        self._header = json.loads(file.read(claimed))
        self._descriptor, self._data = file.fileno(), 8 + claimed

    def names(self) -> list[str]:
        return list(self._file.keys())

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._file.get_slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        """The tensor, copied; CheckpointError where it is of a kind that numpy does not have."""
        try:
            entry = self._header[name]
            dtype = _DTYPES.get(entry["dtype"])
            if dtype is None:  # no parameter
                return self._file.get_tensor(name)
            begin, end = entry["data_offsets"]
            buffer = read_at(self._descriptor, [(self._data + begin, end - begin)])
            return buffer.view(dtype).reshape(entry["shape"])
        except (SafetensorError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = shown(str(error))
            raise CheckpointError(f"{self.path}: cannot read {shown(name)}: {reason}") from None
