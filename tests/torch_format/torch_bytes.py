"""Files of torch.save put together by hand, around any pickle."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAGIC = 0x1950A86A20F9469CFC6C


def zip_file(path: Path, program: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", "little")
        for key, data in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")
    return path


def legacy_bytes(
    program: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    magic: Any = MAGIC,
    system: Any = None,
    keys: Any = None,
    item_size: int = 4,
) -> bytes:
    """A legacy file; `storages` are of elements of `item_size` bytes."""
    out = io.BytesIO()
    storages = storages or {}
    pickle.dump(magic, out, 2)
    pickle.dump(1001, out, 2)
    pickle.dump(system or {"protocol_version": 1001, "little_endian": True}, out, 2)
    out.write(program)
    pickle.dump(list(storages) if keys is None else keys, out, 2)
    for data in storages.values():
        out.write((len(data) // item_size).to_bytes(8, "little") + data)
    return out.getvalue()


def legacy_file(path: Path, program: bytes, storages: Any = None, **options: Any) -> Path:
    path.write_bytes(legacy_bytes(program, storages, **options))
    return path


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def integer(value: int) -> bytes:
    if -(1 << 31) <= value < 1 << 31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def integers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(integer, values)) + b"t"


def storage(key: str = "0", length: int = 4, kind: str = "torch FloatStorage") -> bytes:
    module, name = kind.split()
    parts = [text("storage"), f"c{module}\n{name}\n".encode(), text(key), text("cpu")]
    return b"(" + b"".join(parts) + integer(length) + b"tQ"


def tensor(
    size: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
    offset: int = 0,
    where: bytes | None = None,
) -> bytes:
    """The opcodes of a tensor over `where`, a storage of four floats unless it is given."""
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    parts = [where or storage(), integer(offset), integers(size), integers(stride), b"\x89}"]
    return function + b"(" + b"".join(parts) + b"tR"


def program(*values: bytes) -> bytes:
    """A pickle of {"0": the first value, ...}, each of which is the opcodes that make it."""
    pairs = b"".join(text(str(i)) + value for i, value in enumerate(values))
    return b"\x80\x02}(" + pairs + b"u."
