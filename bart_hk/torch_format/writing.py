"""`write_torch`: a file that `torch.load` opens, written without torch, one tensor at a time."""

import os
import struct
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bart_hk.torch_format.objects import STORAGE_DTYPES, Namespace

_FOLDER = "archive"
_ALIGNMENT = 64
_PROTOCOL = 2
_STORAGES = {dtype: name for name, dtype in STORAGE_DTYPES.items() if name != "UntypedStorage"}


def write_torch(path: str | Path, content: Any) -> None:
    """Write `content` as torch.save does since 1.6, for `torch.load` with or without weights_only.

    The file appears under its name when it is complete.

    Args:
        content: dict, OrderedDict, list, tuple, str, bytes, int, float, bool, None, `Namespace` (an
            argparse.Namespace in the file, for which weights_only=True does not load it), arrays
            (contiguous tensors; the same object in several places shares its storage), numpy's
            scalars (Python's numbers), within each other. Keys are written like values.

    Raises:
        TypeError: something else is in it, or an array of a dtype that torch does not have.
        OSError: the file cannot be written; what was there before is unchanged.
    """
    path = Path(path)
    pickle = _Pickle()
    pickle.write(content)
    temporary = path.with_name(f".{path.name}.saving")
    try:
        with open(temporary, "wb") as file:
            archive = _Zip(file)
            archive.add("data.pkl", pickle.finished())
            archive.add("byteorder", b"little")
            for key, array in enumerate(pickle.arrays):
                flat = np.ascontiguousarray(array).reshape(-1)
                archive.add(f"data/{key}", flat.view(np.uint8).data)
            archive.add("version", b"3\n")
            archive.finish()
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _Pickle:
    """A pickle of protocol 2, in which arrays are torch tensors."""

    def __init__(self) -> None:
        self.arrays: list[Any] = []  # one for each storage
        self._keys: dict[int, int] = {}  # id of an array -> its place in `arrays`
        self._out = bytearray([0x80, _PROTOCOL])

    def finished(self) -> bytes:
        return bytes(self._out + b".")

    def write(self, value: Any) -> None:
        out = self._out
        if isinstance(value, np.generic):
            value = value.item()
        kind = type(value)
        if value is None or kind is bool:
            out += {None: b"N", True: b"\x88", False: b"\x89"}[value]
        elif kind is int:
            self._integer(value)
        elif kind is float:
            out += b"G" + struct.pack(">d", value)
        elif kind is str:
            text = value.encode("utf-8", "surrogatepass")
            out += b"X" + struct.pack("<I", len(text)) + text
        elif kind is bytes:
            self._global("_codecs", "encode")
            self.write((value.decode("latin-1"), "latin1"))
            out += b"R"
        elif kind is tuple:
            out += b"("
            for item in value:
                self.write(item)
            out += b"t"
        elif kind is list:
            out += b"]("
            for item in value:
                self.write(item)
            out += b"e"
        elif kind is Namespace:
            self._global("argparse", "Namespace")
            out += b")\x81}"
            self._items(value)
            out += b"b"
        elif isinstance(value, OrderedDict):
            self._global("collections", "OrderedDict")
            out += b")R"
            self._items(value)
        elif isinstance(value, dict):
            out += b"}"
            self._items(value)
        elif hasattr(value, "__array__") and hasattr(value, "dtype"):
            self._tensor(value)
        else:
            raise TypeError(f"a {kind.__module__}.{kind.__qualname__} has no place in a .pt file")

    def _items(self, mapping: dict[Any, Any]) -> None:
        self._out += b"("
        for key, value in mapping.items():
            self.write(key)
            self.write(value)
        self._out += b"u"

    def _global(self, module: str, name: str) -> None:
        self._out += f"c{module}\n{name}\n".encode()

    def _integer(self, value: int) -> None:
        if -(1 << 31) <= value < 1 << 31:
            self._out += b"J" + struct.pack("<i", value)
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            if len(data) > 255:
                raise TypeError(
                    f"an integer of {value.bit_length()} bits has no place in a .pt file"
                )
            self._out += b"\x8a" + bytes([len(data)]) + data

    def _tensor(self, array: Any) -> None:
        """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)."""
        storage = _STORAGES.get(np.dtype(array.dtype))
        if storage is None:
            raise TypeError(f"an array of dtype {array.dtype} cannot be a tensor")
        if id(array) not in self._keys:
            self._keys[id(array)] = len(self.arrays)
            self.arrays.append(array)
        stride = [1]
        for size in array.shape[:0:-1]:
            stride.append(stride[-1] * max(size, 1))
        self._global("torch._utils", "_rebuild_tensor_v2")
        self._out += b"(("
        self.write("storage")
        self._global("torch", storage)
        for part in (str(self._keys[id(array)]), "cpu", int(array.size)):
            self.write(part)
        self._out += b"tQ"
        for numbers in (0, tuple(array.shape), tuple(stride[: array.ndim][::-1]), False):
            self.write(numbers)
        self.write(OrderedDict())
        self._out += b"tR"


class _Zip:
    """A zip file of members that are stored as they are, each aligned to 64 bytes."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._directory = bytearray()
        self._count = 0

    def add(self, name: str, data: Any) -> None:
        """Write a member from something that has bytes; sizes above 4 GB go to zip64's fields."""
        encoded = f"{_FOLDER}/{name}".encode()
        offset, size, crc = self._file.tell(), len(data), zlib.crc32(data)
        sizes = struct.pack("<2H2Q", 1, 16, size, size) if size >= 0xFFFFFFFF else b""
        padding = -(offset + 30 + len(encoded) + len(sizes) + 4) % _ALIGNMENT
        extra = sizes + struct.pack("<2H", 0x4246, padding) + b"Z" * padding
        large = [size, size] if sizes else []
        large += [offset] if offset >= 0xFFFFFFFF else []
        # Version needed, flags (names are UTF-8), stored, 0:00 of 1980-01-01, checksum, sizes.
        short = min(size, 0xFFFFFFFF)
        common = struct.pack(
            "<5H3I", 45 if large else 20, 0x800, 0, 0, 0x21, crc, short, short
        ) + struct.pack("<H", len(encoded))
        self._file.write(b"PK\3\4" + common + struct.pack("<H", len(extra)) + encoded + extra)
        self._file.write(data)
        extra = struct.pack(f"<2H{len(large)}Q", 1, 8 * len(large), *large) if large else b""
        rest = struct.pack("<4H2I", len(extra), 0, 0, 0, 0, min(offset, 0xFFFFFFFF))
        self._directory += b"PK\1\2" + struct.pack("<H", 45) + common + rest + encoded + extra
        self._count += 1

    def finish(self) -> None:
        """Write the directory, also in zip64's form, as torch does."""
        begin, size, count = self._file.tell(), len(self._directory), self._count
        end = begin + size
        self._file.write(self._directory)
        numbers = (44, 45, 45, 0, 0, count, count, size, begin)
        self._file.write(b"PK\6\6" + struct.pack("<Q2H2I4Q", *numbers))
        self._file.write(b"PK\6\7" + struct.pack("<IQI", 0, end, 1))
        short = (min(count, 0xFFFF), min(count, 0xFFFF))
        places = (min(size, 0xFFFFFFFF), min(begin, 0xFFFFFFFF))
        self._file.write(b"PK\5\6" + struct.pack("<4H2IH", 0, 0, *short, *places, 0))
