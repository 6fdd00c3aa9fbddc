"""Trees of arrays as Flax stores them (`flax.serialization`, msgpack), read and written.

Maps of names (or arrays of them), at whose ends are ndarrays: extension 1, whose content is again
msgpack, `[shape, name of the dtype, bytes]`. One of more than 2 ** 30 bytes is a map of its chunks.

The library msgpack would give every array at once, as bytes to be copied once more, and takes
memory for as many entries as an array claims to have. Here an index of places in the file is made
first; then arrays are read one at a time. Nothing is believed: each size must fit into the file.
"""

import math
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from bart_hk.checkpoint.files import read_at
from bart_hk.errors import LFS_POINTER, CheckpointError, shown

MAX_CHUNK = 1 << 30  # bytes of one array; Flax's MAX_CHUNK_SIZE
MAX_DEPTH = 32  # of maps in maps; a BART's tree has 7
MAX_ENTRIES = 100_000  # of all maps; bart.large's tree has 800
_MAX_NAME = 1000  # bytes

_CHUNKED = "__msgpack_chunked_array__"
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # Flax's extensions
_DTYPES = {
    name: np.dtype(name)
    for name in ("float16", "float32", "float64", "uint8", "int8", "int32", "uint32", "int64")
} | {"bfloat16": np.dtype(ml_dtypes.bfloat16), "bool": np.dtype(bool)}

# First bytes: (what follows, how many bytes its size has).
_SIZED = {
    **{0xC4 + i: ("bytes", 1 << i) for i in range(3)},
    **{0xC7 + i: ("extension", 1 << i) for i in range(3)},
    **{0xD9 + i: ("text", 1 << i) for i in range(3)},
    **{0xDC + i: ("array", 2 << i) for i in range(2)},
    **{0xDE + i: ("map", 2 << i) for i in range(2)},
}
_SHORT = ((0x80, 0x90, "map"), (0x90, 0xA0, "array"), (0xA0, 0xC0, "text"))
_FIXED_EXTENSIONS = {0xD4 + i: 1 << i for i in range(5)}
_NUMBERS = {
    **{0xCC + i: f">{code}" for i, code in enumerate("BHIQbhiq")},
    0xCA: ">f",
    0xCB: ">d",
}
_WORDS = {0xC0: None, 0xC2: False, 0xC3: True}

MakeArray = Callable[[], np.ndarray]


class _Place(NamedTuple):
    """An array in the file: (offset, bytes) of its pieces."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[int, int], ...]


# --- Reading --------------------------------------------------------------------------------------


class ArrayFile:
    """The arrays of a file under their names, joined by dots; the tree's other values are left out.

    What is in an array of arrays has its number as name: `encoder_layers.0.ff0.kernel`.
    """

    def __init__(self, path: Path):
        """Raises FileNotFoundError, or CheckpointError unless it is a whole file of that kind."""
        self.path = path
        try:
            self._file = open(path, "rb")  # kept open, so that all arrays are of one file
        except FileNotFoundError:
            raise FileNotFoundError(f"{path.parent} holds no {path.name}") from None
        weakref.finalize(self, self._file.close)
        if self._file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise CheckpointError(
                f"{path} is a git-lfs pointer to the file: get it with git lfs pull"
            )
        try:
            tree = _Index(self._file).tree()
        except ValueError as error:
            raise CheckpointError(
                f"{path} is damaged or no file of Flax's parameters: {error}"
            ) from None
        self._places = dict(_flatten(tree))

    def names(self) -> list[str]:
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._places[name].shape

    def read(self, name: str) -> np.ndarray:
        """The array, copied; CheckpointError where it is of a kind that numpy does not have."""
        place = self._places[name]
        try:
            if place.dtype not in _DTYPES:
                raise ValueError(f"its dtype is {shown(place.dtype)}")
            data = read_at(self._file.fileno(), place.pieces)
            return data.view(_DTYPES[place.dtype]).reshape(place.shape)
        except (ValueError, OverflowError) as error:
            raise CheckpointError(f"{self.path}: cannot read {shown(name)}: {error}") from None


def _flatten(tree: Any, path: str = "") -> Iterator[tuple[str, _Place]]:
    if isinstance(tree, _Place):
        yield path, tree
    elif isinstance(tree, dict):
        for name, value in tree.items():
            yield from _flatten(value, f"{path}.{name}" if path else name)


class _Index:
    """Walks over a file, from value to value; ValueError wherever it is not what it should be."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._size = file.seek(0, 2)
        self._at = 0
        self._entries = 0
        file.seek(0)

    def tree(self) -> dict[str, Any]:
        """Maps (and arrays, as maps of numbers) with `_Place`s and plain values in them."""
        tree = self._value(0)
        if not isinstance(tree, dict):
            raise ValueError("it begins with no map of names")
        if self._at != self._size:
            raise ValueError(f"it goes on for {self._size - self._at} bytes after its end")
        return tree

    def _take(self, count: int) -> bytes:
        self._skip(count)
        data = self._file.read(count)
        if len(data) != count:
            raise ValueError("it was cut short while it was read")
        return data

    def _skip(self, count: int) -> None:
        """Count bytes as read, which must be there."""
        if count > self._size - self._at:
            raise ValueError(
                f"at byte {self._at} it claims {count} bytes more; it has {self._size}"
            )
        self._at += count

    def _head(self) -> tuple[str, Any]:
        """The kind of the next value, and its size, or the value itself where it has none."""
        first = self._take(1)[0]
        for low, high, kind in _SHORT:
            if low <= first < high:
                return kind, first & (0x1F if kind == "text" else 0x0F)
        if first in _SIZED:
            kind, width = _SIZED[first]
            return kind, int.from_bytes(self._take(width), "big")
        if first in _FIXED_EXTENSIONS:
            return "extension", _FIXED_EXTENSIONS[first]
        if first in _NUMBERS:
            (number,) = struct.unpack(_NUMBERS[first], self._take(struct.calcsize(_NUMBERS[first])))
            return "value", number
        if first in _WORDS:
            return "value", _WORDS[first]
        if first < 0x80 or first >= 0xE0:
            return "value", first - (0x100 if first >= 0xE0 else 0)
        raise ValueError(f"byte {self._at - 1} is {first:#x}, which begins nothing")

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} maps are in each other")
        kind, size = self._head()
        if kind == "map":
            return self._map(size, depth)
        if kind == "array":
            return {str(i): self._counted(depth) for i in range(size)}
        if kind == "extension":
            return self._extension(size)
        if kind in ("text", "bytes"):
            self._skip(size)
            self._file.seek(self._at)
            return None
        return size

    def _counted(self, depth: int) -> Any:
        self._entries += 1
        if self._entries > MAX_ENTRIES:
            raise ValueError(f"it has more than {MAX_ENTRIES} entries")
        return self._value(depth + 1)

    def _map(self, size: int, depth: int) -> Any:
        found: dict[str, Any] = {}
        for _ in range(size):
            name = self._text(*self._head())
            if name in found:
                raise ValueError(f"the name {shown(name)} comes twice in one map")
            found[name] = self._counted(depth)
        return _whole(found) if _CHUNKED in found else found

    def _text(self, kind: str, size: Any) -> str:
        if kind not in ("text", "bytes") or size > _MAX_NAME:
            raise ValueError(f"before byte {self._at} there should be a name")
        try:
            return self._take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"the name before byte {self._at} is not in UTF-8") from None

    def _extension(self, size: int) -> Any:
        code = int.from_bytes(self._take(1), "big", signed=True)
        end = self._at + size
        if end > self._size:
            raise ValueError(f"at byte {self._at} it claims {size} bytes more; it has {self._size}")
        place = None
        if code == _NDARRAY:
            place = self._array(end)
        elif code not in (_COMPLEX, _SCALAR):
            raise ValueError(f"before byte {self._at} is an extension {code}, which Flax has not")
        self._at = end
        self._file.seek(end)
        return place

    def _array(self, end: int) -> _Place:
        """The array whose description begins here and whose bytes reach to `end`."""
        begin = self._at
        kind, count = self._head()
        sizes, dimensions = self._head() if (kind, count) == ("array", 3) else ("", 0)
        if sizes != "array" or dimensions > 16:
            raise ValueError(f"at byte {begin} there is no array's shape")
        shape = []
        for _ in range(dimensions):
            kind, length = self._head()
            if kind != "value" or type(length) is not int or length < 0:
                raise ValueError(f"the array at byte {begin} has no numbers for a shape")
            shape.append(length)
        dtype = self._text(*self._head())
        kind, size = self._head()
        if kind != "bytes" or self._at + size != end:
            raise ValueError(f"the array at byte {begin} does not end where it should")
        if dtype in _DTYPES and math.prod(shape) * _DTYPES[dtype].itemsize != size:
            raise ValueError(
                f"the array at byte {begin} claims the shape {shown(str(tuple(shape)))} of "
                f"{dtype}; it has {size} bytes"
            )
        return _Place(dtype, tuple(shape), ((self._at, size),))


def _whole(chunked: Mapping[str, Any]) -> _Place:
    """The array that a map of chunks stands for."""
    shape, chunks = _counted_values(chunked.get("shape")), _counted_values(chunked.get("chunks"))
    plain = all(type(length) is int and length >= 0 for length in shape) and chunks
    if not plain or not all(isinstance(chunk, _Place) for chunk in chunks):
        raise ValueError("an array in chunks has no shape, or no chunks")
    dtype = chunks[0].dtype
    pieces = tuple(piece for chunk in chunks for piece in chunk.pieces)
    there = sum(math.prod(chunk.shape) for chunk in chunks)
    if {chunk.dtype for chunk in chunks} != {dtype} or there != math.prod(shape):
        raise ValueError(
            f"an array in chunks claims the shape {shown(str(tuple(shape)))} of {shown(dtype)}, "
            "which its chunks do not give"
        )
    return _Place(dtype, tuple(shape), pieces)


def _counted_values(tree: Any) -> list[Any]:
    """The values of a map with the names "0", "1", ..., in their order; [] of anything else."""
    if not isinstance(tree, dict) or set(tree) != {str(i) for i in range(len(tree))}:
        return []
    return [tree[str(i)] for i in range(len(tree))]


# --- Writing --------------------------------------------------------------------------------------


def write_arrays(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree of dicts, lists and, at their ends, functions that make an array each.

    Arrays are made one at a time. The bytes are those of `flax.serialization.msgpack_serialize`.
    """
    with open(path, "wb") as file:
        _write(file, tree)


def _write(file: IO[bytes], tree: Any) -> None:
    if isinstance(tree, Mapping):
        file.write(_sized(len(tree), 0x80, 16, {2: 0xDE, 4: 0xDF}))
        for name, value in tree.items():
            file.write(_packed_text(name))
            _write(file, value)
    elif isinstance(tree, Sequence):
        file.write(_sized(len(tree), 0x90, 16, {2: 0xDC, 4: 0xDD}))
        for value in tree:
            _write(file, value)
    elif isinstance(tree, bool | int):
        file.write(b"\xc3" if tree is True else _packed_int(tree))
    else:
        _write_array(file, tree())


def _write_array(file: IO[bytes], array: np.ndarray) -> None:
    if array.dtype not in _DTYPES.values():
        raise ValueError(f"an array of dtype {array.dtype} has no place among Flax's parameters")
    if array.nbytes > MAX_CHUNK:
        step = MAX_CHUNK // array.dtype.itemsize
        flat = np.ascontiguousarray(array).reshape(-1)
        pieces = [flat[i : i + step] for i in range(0, flat.size, step)]
        chunks = {str(i): lambda piece=piece: piece for i, piece in enumerate(pieces)}
        lengths = {str(i): length for i, length in enumerate(array.shape)}
        _write(file, {_CHUNKED: True, "shape": lengths, "chunks": chunks})
        return
    head = b"\x93" + _sized(array.ndim, 0x90, 16, {2: 0xDC})
    head += b"".join(map(_packed_int, array.shape)) + _packed_text(array.dtype.name)
    head += _sized(array.nbytes, 0, 0, {1: 0xC4, 2: 0xC5, 4: 0xC6})
    size = len(head) + array.nbytes
    fixed = {length: first for first, length in _FIXED_EXTENSIONS.items()}.get(size)
    begin = bytes([fixed]) if fixed else _sized(size, 0, 0, {1: 0xC7, 2: 0xC8, 4: 0xC9})
    file.write(begin + bytes([_NDARRAY]) + head)
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _sized(size: int, short: int, limit: int, firsts: Mapping[int, int]) -> bytes:
    """What begins a value of `size`: one byte where the size is below `limit`, or the first of
    `firsts` (size's width: first byte) that has room for it."""
    if size < limit:
        return bytes([short | size])
    width = next(width for width in firsts if size < 1 << 8 * width)
    return bytes([firsts[width]]) + size.to_bytes(width, "big")


def _packed_text(text: str) -> bytes:
    data = text.encode("utf-8")
    return _sized(len(data), 0xA0, 32, {1: 0xD9, 2: 0xDA, 4: 0xDB}) + data


def _packed_int(number: int) -> bytes:
    return _sized(number, 0, 128, {1: 0xCC, 2: 0xCD, 4: 0xCE, 8: 0xCF})
