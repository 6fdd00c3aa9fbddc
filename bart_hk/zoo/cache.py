"""The folder of downloaded and unpacked models: where it is, what it holds, who may write to it.

An entry is a folder `NAME-HASH` with the model in `files/` and, in `source.json`, where that came
from. It appears under its name only when it is complete, so that it can be read without a lock;
whoever makes one holds the lock `NAME-HASH.lock`.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

_FILES = "files"
_SOURCE = "source.json"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
_ELSEWHERE = "name another place with cache_dir= or $BART_HK_CACHE"


def torch_home() -> Path:
    """torch's cache, by its rules: $TORCH_HOME, $XDG_CACHE_HOME/torch, ~/.cache/torch."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_HOME") or os.path.join(cache, "torch")).expanduser()


def cache_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """The first of `cache_dir`, $BART_HK_CACHE, fairseq's $PYTORCH_FAIRSEQ_CACHE, torch's cache."""
    environment = os.environ.get
    chosen = cache_dir or environment("BART_HK_CACHE") or environment("PYTORCH_FAIRSEQ_CACHE")
    return Path(chosen).expanduser() if chosen else torch_home() / "bart_hk"


def offline() -> bool:
    """Whether $HF_HUB_OFFLINE (or transformers' name for it) forbids to ask the network."""
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.upper() in {"1", "ON", "YES", "TRUE"} for value in values)


class Entry:
    """What the cache holds, or will hold, of one source."""

    def __init__(self, cache: Path, source: str):
        """`source` is an address or a path; `cache` need not exist."""
        name = source.rstrip("/").rpartition("/")[2]
        name = re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:80]
        for ending in (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar", ".zip"):
            name = name.removesuffix(ending)
        digest = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()
        self.cache = cache
        self.source = source
        self.folder = cache / f"{name}-{digest[:16]}"

    def beside(self, ending: str) -> Path:
        return self.folder.with_name(self.folder.name + ending)

    def find(self, **facts: Any) -> Path | None:
        """The model's folder or its single file; None if it is not there, or not of these facts."""
        try:
            source = json.loads((self.folder / _SOURCE).read_text(encoding="utf-8"))
            known = {"source": self.source, **facts}
            if any(source.get(key) != value for key, value in known.items()):
                return None
            found = self.folder / _FILES / (source["file"] or "")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return found if found.exists() else None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Nobody else makes this entry meanwhile. OSError if the cache cannot be written."""
        from filelock import FileLock, Timeout

        with writing(self.cache):
            self.cache.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.beside(".lock"))
            try:
                lock.acquire(timeout=1)
            except Timeout:
                _log.warning("waiting for another process, which is fetching %s", self.source)
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def make(self, fill: Callable[[Path], Path | None], facts: Mapping[str, Any]) -> Path:
        """Let `fill` put the model into a new folder, which then becomes the entry.

        `fill` returns the single file that the model is, or None for the folder. The lock is held.
        """
        staging, old = self.beside(".new"), self.beside(".old")
        try:
            with writing(self.cache):
                for folder in (staging, old):
                    shutil.rmtree(folder, ignore_errors=True)
                staging.mkdir()
                file = fill(staging / _FILES)
                source = {"source": self.source, "file": file and file.name, **facts}
                text = json.dumps(source, indent=2) + "\n"
                (staging / _SOURCE).write_text(text, encoding="utf-8")
                for path in [*staging.rglob("*"), staging]:
                    _sync(path)
                if self.folder.exists():
                    self.folder.rename(old)
                staging.rename(self.folder)
        finally:
            for folder in (staging, old):
                shutil.rmtree(folder, ignore_errors=True)
        found = self.find()
        if found is None:
            raise OSError(f"{self.folder} was removed while it was made; try again")
        return found


@contextlib.contextmanager
def writing(cache: Path) -> Iterator[None]:
    """A full or read-only disk below `cache` becomes an OSError of one line with the remedy."""
    try:
        yield
    except OSError as error:
        if error.filename and not Path(error.filename).is_relative_to(cache):
            raise  # of a file that is only read
        if error.errno in NO_SPACE:
            raise no_space(cache) from error
        if error.errno in READ_ONLY:
            raise OSError(
                f"the cache {cache} cannot be written ({error.strerror}); {_ELSEWHERE}"
            ) from error
        raise


def no_space(cache: Path, what: str = "", needed: int | None = None) -> OSError:
    """The exception for a cache that is full, or too small for `needed` bytes of `what`."""
    needs = f"{what} needs {size(needed)} and " if needed is not None else ""
    try:
        free = f"{size(shutil.disk_usage(cache).free)} are free"
    except OSError:
        free = "its disk is full"
    return OSError(f"no space in the cache {cache}: {needs}{free}; make room, or {_ELSEWHERE}")


def size(count: int) -> str:
    """3700000000 -> "3.7 GB"."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
