"""The zip container of `torch.save`: where its members lie, found without reading them.

The format is that of PKWARE's APPNOTE; of what it allows only what torch writes is accepted, which
makes it safe to map: nothing is compressed, no two members overlap, no name climbs out.
"""

import mmap
import struct
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bart_hk.errors import CheckpointError, shown

MAGIC = b"PK\3\4"
MAX_MEMBERS = 100_000  # bart.large with its optimizer's state has 1,600
MAX_DIRECTORY = 32 << 20  # bytes

_CHUNK = 16 << 20  # bytes that are looked at before their pages are given back
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_LOCATOR_64 = struct.Struct("<4sIQI")
_END_64 = struct.Struct("<4sQ2H2I4Q")


class Member(NamedTuple):
    name: str
    begin: int  # of its data in the file
    size: int
    crc: int


def read_members(source: mmap.mmap, path: Path) -> dict[str, Member]:
    """The members of a zip file by their names, in the order of the file.

    Raises:
        CheckpointError: it is truncated, damaged, or uses what torch.save does not.
    """
    begin, size, count = _directory(source, path)
    if count > MAX_MEMBERS or size > MAX_DIRECTORY or count * _CENTRAL.size > size:
        raise CheckpointError(f"{path}: its zip directory claims {count} members in {size} bytes")
    entries = []
    position = begin
    for _ in range(count):
        entry, position = _entry(source, position, begin + size, path)
        entries.append(entry)
    if position != begin + size:
        raise CheckpointError(f"{path}: its zip directory is damaged")
    members: dict[str, Member] = {}
    entries.sort(key=lambda entry: entry[1])
    limits = [offset for _, offset, _, _ in entries[1:]] + [begin]
    for (name, offset, length, crc), limit in zip(entries, limits, strict=True):
        data = _data_begin(source, name, offset, limit, path)
        text = _checked_name(name, path)
        if data + length > limit:
            raise CheckpointError(f"{path}: {text} leaves its place in the zip file")
        if text in members:
            raise CheckpointError(f"{path}: {text} is there twice")
        members[text] = Member(text, data, length, crc)
    return members


def check_members(source: mmap.mmap, members: Iterable[Member], path: Path) -> None:
    """Compare members with their checksums, two at a time; CheckpointError where one differs."""
    data = memoryview(source)

    def crc(member: Member) -> int:
        checksum, end = 0, member.begin + member.size
        for begin in range(member.begin, end, _CHUNK):
            # Other threads go on meanwhile; afterwards the pages no longer count as our memory.
            checksum = zlib.crc32(data[begin : min(begin + _CHUNK, end)], checksum)
            first_page = begin // mmap.PAGESIZE * mmap.PAGESIZE
            source.madvise(mmap.MADV_DONTNEED, first_page, min(_CHUNK, end - begin))
        return checksum

    largest_first = sorted(members, key=lambda member: -member.size)
    with ThreadPoolExecutor(2) as pool:
        for member, found in zip(largest_first, pool.map(crc, largest_first), strict=True):
            if found != member.crc:
                raise CheckpointError(
                    f"{path}: {member.name} is damaged (CRC-32 {found:08x}, not {member.crc:08x}); "
                    "get the file again"
                )


def _directory(source: mmap.mmap, path: Path) -> tuple[int, int, int]:
    """(begin, size, number of entries) of the directory at the end of the file."""
    length = len(source)
    end = source.rfind(b"PK\5\6", max(0, length - _END.size - 0xFFFF))
    if end < 0 or end + _END.size > length:
        raise CheckpointError(f"{path}: is truncated: the directory at its end is missing")
    _, disk, _, _, count, size, begin, comment = _END.unpack_from(source, end)
    if disk or end + _END.size + comment != length:
        raise CheckpointError(f"{path}: its zip directory is damaged")
    locator = end - _LOCATOR_64.size
    if locator >= 0 and source[locator : locator + 4] == b"PK\6\7":
        _, _, end, _ = _LOCATOR_64.unpack_from(source, locator)
        if end + _END_64.size > locator or source[end : end + 4] != b"PK\6\6":
            raise CheckpointError(f"{path}: its zip directory is damaged")
        *_, count, size, begin = _END_64.unpack_from(source, end)
    if begin + size > end:
        raise CheckpointError(f"{path}: its zip directory is damaged")
    return begin, size, count


def _entry(
    source: mmap.mmap, position: int, limit: int, path: Path
) -> tuple[tuple[bytes, int, int, int], int]:
    """(name, offset of the local header, size, CRC) of one entry, and where the next begins."""
    names = position + _CENTRAL.size
    if names > limit or source[position : position + 4] != b"PK\1\2":
        raise CheckpointError(f"{path}: its zip directory is damaged")
    fields = _CENTRAL.unpack_from(source, position)
    _, _, _, flags, method, _, _, crc, packed, size, *rest = fields
    name_length, extra_length, comment_length, _, _, _, offset = rest
    extras = names + name_length
    following = extras + extra_length + comment_length
    if following > limit:
        raise CheckpointError(f"{path}: its zip directory is damaged")
    name = source[names:extras]
    size, packed, offset = _zip64(source[extras : extras + extra_length], [size, packed, offset])
    if flags & 1 or method or packed != size:
        raise CheckpointError(
            f"{path}: {shown(name)} is compressed or encrypted, which torch.save never does: "
            "unpack the archive"
        )
    return (name, offset, size, crc), following


def _zip64(extra: bytes, values: list[int]) -> list[int]:
    """Replace the values that did not fit into 32 bits by those of the extra field."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        content = extra[position + 4 : position + 4 + size]
        if kind == 1:
            large = iter(struct.unpack_from(f"<{len(content) // 8}Q", content))
            return [next(large, v) if v == 0xFFFFFFFF else v for v in values]
        position += 4 + size
    return values


def _data_begin(source: mmap.mmap, name: bytes, offset: int, limit: int, path: Path) -> int:
    """Where the data of a member begins, whose local header is at `offset`."""
    if offset + _LOCAL.size > limit or source[offset : offset + 4] != MAGIC:
        raise CheckpointError(f"{path}: {shown(name)} is not where the zip directory says")
    *_, name_length, extra_length = _LOCAL.unpack_from(source, offset)
    names = offset + _LOCAL.size
    if source[names : names + name_length] != name:
        raise CheckpointError(f"{path}: {shown(name)} is not where the zip directory says")
    return names + name_length + extra_length


def _checked_name(name: bytes, path: Path) -> str:
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        text = ""
    parts = text.split("/")
    if not text.isprintable() or "\\" in text or ":" in parts[0] or {"", ".", ".."} & set(parts):
        raise CheckpointError(f"{path}: has a member with the name {shown(name)}, which climbs out")
    return text
