"""A server, archives of a small model's files, and disks that are full or read-only."""

import contextlib
import importlib
import io
import os
import resource
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zoo import server as servers

# The files of a model as far as zoo is concerned: what is in them is other rooms' business.
MODEL = {
    "model.pt": b"\x80\x02" + bytes(range(256)) * 400,
    "dict.txt": b"15496 10\n995 9\n",
    "NOTE": b"a model",
}

# What zoo imports when it needs it.
LAZY = ("bart_hk.zoo.download", "bart_hk.zoo.repositories", "filelock", "tqdm.auto")
LAZY += ("huggingface_hub.errors", "huggingface_hub._snapshot_download")


def tar_bytes(files: dict[str, bytes], mode: str = "w:gz", top: str = "bart.tiny/") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(top + name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def zip_bytes(files: dict[str, bytes], top: str = "bart.tiny/", method: int = 8) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return out.getvalue()


def contents(folder: Path) -> dict[str, bytes]:
    """Name -> content of every file in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    about = servers.Server()
    http = servers.start(about)
    yield about
    http.shutdown()
    http.server_close()


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is taken from the caches of whoever runs the tests, nor put there."""
    home = tmp_path_factory.mktemp("home")
    for name in ("BART_HK_CACHE", "PYTORCH_FAIRSEQ_CACHE", "XDG_CACHE_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    return home


@contextlib.contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """No file can be longer than so many bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder for `as_nobody`, outside of pytest's, which nobody else may enter."""
    folder = Path(tempfile.mkdtemp(prefix="read-only-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@contextlib.contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Nothing in `folder` can be written; root, who could, is put into the shoes of nobody."""
    for module in LAZY:  # nobody may not be able to read them
        importlib.import_module(module)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    if os.geteuid() != 0:
        yield
    else:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
