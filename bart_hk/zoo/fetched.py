"""What is kept in the cache: downloads, and the folders of archives."""

import functools
import hashlib
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

from bart_hk.errors import CheckpointError
from bart_hk.zoo import archives
from bart_hk.zoo.cache import Entry, torch_home, writing


def local_file(path: Path, cache: Path, *, force_reload: bool = False) -> Path:
    """A checkpoint as it is; the folder of an archive that is here, unpacked into `cache`.

    It is unpacked again when its size or time has changed.
    """
    if not archives.is_archive(path):
        return path
    status = path.stat()
    facts = {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
    entry = Entry(cache, str(path.resolve()))
    if not force_reload and (found := entry.find(**facts)):
        return found
    with entry.lock():
        if not force_reload and (found := entry.find(**facts)):
            return found  # another process was faster

        def fill(folder: Path) -> None:
            archives.unpack(path, folder)

        return entry.make(fill, facts)


def address(
    url: str,
    cache: Path,
    *,
    name: str | None = None,
    force_reload: bool = False,
    local_files_only: bool = False,
) -> Path:
    """What an address leads to: the folder of an archive, or a checkpoint.

    Args:
        name: what the user called it.
    """
    url, fragment = urldefrag(url)
    checksum = _checksum(fragment)
    facts = {"sha256": checksum} if checksum else {}
    entry = Entry(cache, url)
    file = unquote(urlsplit(url).path).rpartition("/")[2] or "model.pt"
    missing = f"no model {name or url!r}: it is not in the cache {cache}"
    by_hand = f"bring that file from elsewhere and give its path, bart_hk.load({'./' + file!r})"
    if not force_reload:
        if found := entry.find(**facts) or (_of_fairseq(url) if name else None):
            return found
    if local_files_only:
        raise FileNotFoundError(
            f"{missing}, and the network is not to be used for {url} (local_files_only, or "
            f"HF_HUB_OFFLINE is set); {by_hand}"
        )
    from bart_hk.zoo.download import fetch, forget

    with entry.lock():
        if not force_reload and (found := entry.find(**facts)):
            return found  # another process was faster
        part = entry.beside(".part")
        try:
            with writing(cache):
                fetch(url, part, name=file)
        except (FileNotFoundError, ConnectionError) as error:
            raise type(error)(f"{missing}, and {error}; {by_hand}") from error
        try:
            if checksum:
                _verify(part, checksum)
            fill = functools.partial(_fill, part, file)
            made = entry.make(fill, facts)
        except CheckpointError as error:
            forget(part)
            reason = str(error).removeprefix(f"{part}: ").removeprefix(f"{part} ")
            raise CheckpointError(
                f"what was downloaded from {url} is no model: {reason}; it was removed from {cache}"
            ) from None
        forget(part)
        return made


def _fill(part: Path, file: str, folder: Path) -> Path | None:
    if archives.is_archive(part, file):
        archives.unpack(part, folder)
        return None
    folder.mkdir()
    try:
        os.link(part, folder / file)
    except OSError:  # no hard links there
        shutil.copyfile(part, folder / file)
    return folder / file


def _checksum(fragment: str) -> str | None:
    """The digits of "sha256=..." at the end of an address; None if it ends otherwise."""
    kind, _, digits = fragment.lower().partition("=")
    if kind != "sha256":
        return None
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise ValueError(f"#{fragment} is no SHA-256, which has 64 hexadecimal digits")
    return digits


def _verify(part: Path, checksum: str) -> None:
    with open(part, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != checksum:
        raise CheckpointError(f"its SHA-256 is {found}, not {checksum}")


def _of_fairseq(url: str) -> Path | None:
    """The folder that fairseq itself keeps of one of its archives (fairseq/file_utils.py)."""
    cache = os.environ.get("PYTORCH_FAIRSEQ_CACHE") or torch_home() / "pytorch_fairseq"
    # fairseq names it by the plain address, and by the ETag that the server gave.
    key = hashlib.sha256(url.replace("https://", "http://").encode()).hexdigest()
    folders = [p for p in Path(cache).expanduser().glob(f"{key}*") if (p / "model.pt").is_file()]
    return max(folders, key=lambda p: p.stat().st_mtime, default=None)
