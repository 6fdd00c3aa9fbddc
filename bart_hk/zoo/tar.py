"""Reads tar archives in one pass, with memory that no archive can make large.

Python's `tarfile` reads an extended header of any declared size into memory, follows chains of them
recursively and raises a dozen exceptions. A model's archive needs files and folders, no more.
Formats: POSIX ustar and pax (IEEE Std 1003.1, pax), and GNU's long names.
"""

from collections.abc import Callable
from typing import NamedTuple

from bart_hk.errors import CheckpointError

BLOCK = 512
_MAX_EXTENDED = 1 << 16  # bytes of an extended header: a path, some times, an owner
_MAX_PADDING = 1 << 20  # bytes after the end mark; tar writes less than 10 KiB
_FILES, _FOLDER = (b"0", b"\0", b"7"), b"5"
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
}

Read = Callable[[int], bytes]  # up to so many bytes of the unpacked archive; b"" at its end


class Member(NamedTuple):
    """A file or folder; a file's `size` bytes are read next, then `padding` that means nothing."""

    name: str
    size: int
    is_folder: bool

    @property
    def padding(self) -> int:
        return -self.size % BLOCK


def is_header(block: bytes) -> bool:
    """Whether a file that begins with `block` is a tar archive."""
    return len(block) >= BLOCK and block[257:262] == b"ustar" and _checksum_fits(block[:BLOCK])


def next_member(read: Read) -> Member | None:
    """The next member, or None at the end mark, after which nothing but padding was found.

    Raises:
        CheckpointError: a damaged header, or a member that is neither file nor folder.
    """
    name: str | None = None
    size: int | None = None
    for _ in range(4):  # a long name, a long link and a pax header may precede one member
        header = read_exactly(read, BLOCK)
        if header == bytes(BLOCK):
            if name is not None or size is not None:
                raise CheckpointError("it ends after an extended header")
            _check_end(read)
            return None
        if not _checksum_fits(header):
            raise CheckpointError("a header in it is damaged, or it is no tar archive")
        kind, stored = header[156:157], _number(header[124:136])
        if kind in (b"x", b"g", b"L", b"K"):
            if stored > _MAX_EXTENDED:
                raise CheckpointError(f"an extended header in it claims {stored} bytes")
            content = read_exactly(read, stored + -stored % BLOCK)[:stored]
            if kind == b"L":
                name = _text(content.rstrip(b"\0"))
            elif kind == b"x":
                for key, value in _pax_records(content):
                    if key == b"path":
                        name = _text(value)
                    elif key == b"size":
                        size = _decimal(value)
                    elif key.startswith(b"GNU.sparse"):
                        raise CheckpointError(f"{name or 'a member'} is a sparse file")
            continue
        if name is None:
            name = _header_name(header)
        if kind in _REFUSED:
            raise CheckpointError(f"{ascii(name)} is {_REFUSED[kind]}, which no model needs")
        is_folder = kind == _FOLDER or (kind in _FILES and name.endswith("/"))
        if kind not in _FILES and not is_folder:
            raise CheckpointError(
                f"{ascii(name)} has the unknown type {ascii(kind.decode('latin1'))}"
            )
        return Member(name, 0 if is_folder else stored if size is None else size, is_folder)
    raise CheckpointError("extended headers in it follow one another")


def read_exactly(read: Read, count: int) -> bytes:
    """`count` bytes; CheckpointError if there are fewer."""
    parts = []
    while count:
        part = read(min(count, 1 << 20))
        if not part:
            raise CheckpointError("it is cut short")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _check_end(read: Read) -> None:
    """Read to the end, where decompressors compare their checksums."""
    padding = 0
    while part := read(BLOCK * 20):
        padding += len(part)
        if padding > _MAX_PADDING:
            raise CheckpointError(f"more than {_MAX_PADDING} bytes follow its end mark")


def _checksum_fits(header: bytes) -> bool:
    try:
        stored = _number(header[148:156])
    except CheckpointError:
        return False
    return stored == sum(header[:148]) + 8 * ord(" ") + sum(header[156:])


def _number(field: bytes) -> int:
    """Octal digits, or GNU's big-endian binary for what they cannot hold."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0")[0].strip()
    if any(digit not in b"01234567" for digit in digits):
        raise CheckpointError("a header in it is damaged: a number is not octal")
    return int(digits or b"0", 8)


def _decimal(value: bytes) -> int:
    if not (value.isdigit() and len(value) < 20):
        raise CheckpointError(f"an extended header in it gives the size {ascii(value)[1:]}")
    return int(value)


def _pax_records(content: bytes) -> list[tuple[bytes, bytes]]:
    """The "LENGTH KEY=VALUE\\n" records of a pax header."""
    records = []
    while content:
        length, space, _ = content.partition(b" ")
        end = _decimal(length) if space else 0
        record = content[len(length) + 1 : end]
        if end > len(content) or not record.endswith(b"\n") or b"=" not in record:
            raise CheckpointError("an extended header in it is damaged")
        key, _, value = record[:-1].partition(b"=")
        records.append((key, value))
        content = content[end:]
    return records


def _header_name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise CheckpointError(f"the name {ascii(name)[1:]} in it is not in UTF-8") from None
