"""Archives of models, told apart by their content and unpacked without trusting them.

Nothing is written outside the folder, no link or device is made, and an archive that grows beyond
all measure is given up before it fills the disk.
"""

import bz2
import contextlib
import errno
import functools
import gzip
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from bart_hk.errors import CheckpointError
from bart_hk.zoo import tar
from bart_hk.zoo.cache import no_space, size

MAX_MEMBERS = 10_000
# Weights hardly shrink; what a bomb gains is a thousandfold.
MAX_RATIO = 100
SMALL = 100 << 20  # bytes that any archive may unpack to
_MAX_DEPTH = 32  # folders in one another
_MAX_DIRECTORY = 8 << 20  # bytes that a zip archive's directory may take
_CHUNK = 1 << 20

_READ_HERE = ".tar.gz, .tgz, .tar.bz2, .tar and .zip"
_CHECKPOINTS = (".bin", ".ckpt", ".dat", ".msgpack", ".pt", ".pth", ".safetensors")
_DAMAGE = (
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    LookupError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def is_archive(path: Path, name: str | None = None) -> bool:
    """Whether the file is an archive; False for a checkpoint (torch's .pt is a zip file as well).

    Args:
        name: what it was called where it came from.

    Raises:
        CheckpointError: it is neither.
    """
    name = name or path.name
    with open(path, "rb") as file:
        head = file.read(tar.BLOCK)
    if head[:2] == b"\x1f\x8b" or head[:3] == b"BZh" or tar.is_header(head):
        return True
    if head[:2] == b"PK":
        if not name.lower().endswith(".zip") and name.lower().endswith(_CHECKPOINTS):
            return False
        with _damage_named(path), open(path, "rb") as file, _open_zip(file) as archive:
            return not any(n == "data.pkl" or n.endswith("/data.pkl") for n in archive.namelist())
    if name.lower().endswith(_CHECKPOINTS):
        return False
    begins = "it is empty" if not head else f"it begins with {ascii(head[:16])[1:]}"
    raise CheckpointError(
        f"{path} is neither a checkpoint ({', '.join(_CHECKPOINTS)}) nor an archive that can be "
        f"read ({_READ_HERE}): {begins}"
    )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack into the new `folder`. A single top folder of the archive is left out.

    Raises:
        CheckpointError: damaged, or it holds what no model's archive does: links, devices, names
            that lead out of it, far more bytes than its size explains.
        OSError: no space, or the disk fails.
    """
    unpacked = folder.with_name(folder.name + ".unpacking")
    unpacked.mkdir()
    target = _Target(archive, unpacked)
    with _damage_named(archive), open(archive, "rb") as file:
        if file.read(2) == b"PK":
            _unpack_zip(file, target)
        else:
            with contextlib.closing(_open_tar(file)) as stream:
                _unpack_tar(stream.read, target)
    if not target.files:
        raise CheckpointError(f"{archive}: the archive holds no files")
    top = list(unpacked.iterdir())
    if len(top) == 1 and top[0].is_dir():
        top[0].rename(folder)
        unpacked.rmdir()
    else:
        unpacked.rename(folder)


class _Target:
    """The folder that an archive is unpacked into, and what it may still take."""

    def __init__(self, archive: Path, folder: Path):
        self.folder = folder
        self.files: set[str] = set()
        self._members = 0
        self._compressed = archive.stat().st_size
        self._allowed = SMALL + MAX_RATIO * self._compressed
        self._taken = 0
        self._free = shutil.disk_usage(folder).free

    def add(self, name: str, is_folder: bool, count: int, chunks: Iterable[bytes]) -> None:
        """A member called `name` that says it has `count` bytes."""
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise CheckpointError(f"it holds more than {MAX_MEMBERS} members")
        parts = _parts(name)
        path = self.folder.joinpath(*parts)
        unwanted = _is_litter(parts)
        self._check_room(name, count)
        if not (parts and unwanted):
            parents = {"/".join(parts[:i]) for i in range(1, len(parts) + (is_folder))}
            if clash := (parents & self.files):
                raise CheckpointError(f"{ascii(min(clash))} is both a file and a folder in it")
            (path if is_folder else path.parent).mkdir(parents=True, exist_ok=True)
        if is_folder:
            return
        if not parts:
            raise CheckpointError(f"a file in it has the name {ascii(name)}")
        key = "/".join(parts)
        if not unwanted and (key in self.files or path.exists()):
            raise CheckpointError(f"it holds {ascii(key)} twice")
        written = 0
        with open("/dev/null" if unwanted else path, "wb" if unwanted else "xb") as file:
            for chunk in chunks:
                written += len(chunk)
                self._check_room(name, written)
                file.write(chunk)
        self._taken += written
        if written != count:
            raise CheckpointError(f"{ascii(name)} has {written} bytes, not the {count} it claims")
        if not unwanted:
            self.files.add(key)

    def _check_room(self, name: str, count: int) -> None:
        total = self._taken + count
        if total > self._allowed:
            raise CheckpointError(
                f"with {ascii(name)} it unpacks to more than {MAX_RATIO} times its "
                f"{size(self._compressed)}, as bombs do; if you trust it, unpack it yourself and "
                "give the folder"
            )
        if total > self._free:
            raise no_space(self.folder.parent, f"what {ascii(name)} unpacks to", total)


def _parts(name: str) -> list[str]:
    """The folders and the file of a member's name; CheckpointError if it leads out."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    wrong = None
    if name.startswith("/") or (parts and len(parts[0]) == 2 and parts[0][1] == ":"):
        wrong = "is an absolute path"
    elif ".." in parts:
        wrong = "leads out of the archive"
    elif "\\" in name or "\0" in name:
        wrong = "has a backslash or a NUL in it"
    elif len(parts) > _MAX_DEPTH or any(len(part.encode()) > 255 for part in parts):
        wrong = "is too long or too deep"
    if wrong:
        shown = ascii(name if len(name) < 200 else name[:197] + "...")
        raise CheckpointError(f"the name {shown} in it {wrong}")
    return parts


def _is_litter(parts: list[str]) -> bool:
    """What macOS adds to archives."""
    return bool(parts) and (parts[0] == "__MACOSX" or parts[-1].startswith(("._", ".DS_Store")))


# --- tar ------------------------------------------------------------------------------------------


def _open_tar(file: IO[bytes]) -> Any:
    file.seek(0)
    head = file.read(3)
    file.seek(0)
    if head[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=file)
    return bz2.BZ2File(file) if head == b"BZh" else file


def _unpack_tar(read: tar.Read, target: _Target) -> None:
    while member := tar.next_member(read):
        chunks = _chunks(read, member.size)
        target.add(member.name, member.is_folder, member.size, chunks)
        tar.read_exactly(read, member.padding)


def _chunks(read: Callable[[int], bytes], count: int) -> Iterator[bytes]:
    while count:
        chunk = read(min(count, _CHUNK))
        if not chunk:
            raise CheckpointError("it is cut short")
        count -= len(chunk)
        yield chunk


# --- zip ------------------------------------------------------------------------------------------


class _Bounded:
    """A file of which nobody reads more at once than a zip archive's directory may take."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, count: int = -1) -> bytes:
        if count > _MAX_DIRECTORY:
            raise CheckpointError(f"its directory claims {count} bytes")
        return self._file.read(_MAX_DIRECTORY if count < 0 else count)


def _open_zip(file: IO[bytes]) -> zipfile.ZipFile:
    return zipfile.ZipFile(_Bounded(file))


def _unpack_zip(file: IO[bytes], target: _Target) -> None:
    with _open_zip(file) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                link = "a link" if stat.S_ISLNK(mode) else "a device"
                raise CheckpointError(f"{ascii(info.filename)} is {link}, which no model needs")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise CheckpointError(
                    f"{ascii(info.filename)} is compressed by method {info.compress_type}; only "
                    "stored and deflated members are read"
                )
            # zipfile cuts a name at its NUL, so look at the one that is stored.
            name = info.orig_filename
            if info.is_dir():
                target.add(name, True, 0, ())
                continue
            with archive.open(info) as member:
                chunks = iter(functools.partial(member.read, _CHUNK), b"")
                target.add(name, False, info.file_size, chunks)


@contextlib.contextmanager
def _damage_named(archive: Path) -> Iterator[None]:
    """Every complaint about the content becomes one CheckpointError that names the archive."""
    try:
        yield
    except OSError as error:
        # Decompressors raise it without a number, and seeking before the start gives EINVAL.
        if error.errno not in (None, errno.EINVAL) or isinstance(error, ConnectionError):
            raise
        if str(error).startswith("no space"):
            raise
        raise CheckpointError(f"{archive}: the archive is damaged: {error}") from None
    except _DAMAGE as error:
        if isinstance(error, CheckpointError):
            raise CheckpointError(f"{archive}: {error}") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{archive}: the archive is damaged: {reason}") from None
