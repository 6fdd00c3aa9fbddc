"""`locate`: the cache, several processes at once, no network, no space, no permission."""

import errno
import functools
import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from bart_hk import zoo
from bart_hk.errors import CheckpointError
from bart_hk.zoo import cache, names
from tests.zoo import server as servers
from tests.zoo.conftest import MODEL, as_nobody, contents, small_disk, tar_bytes, zip_bytes

ROOT = Path(__file__).parents[2]
ARCHIVE = tar_bytes(MODEL)
OTHER = {**MODEL, "NOTE": b"another model"}


@pytest.fixture
def published(server, monkeypatch) -> servers.Server:
    """The server has bart.base, as fairseq's has."""
    server.files["/fairseq/models/bart.base.tar.gz"] = ARCHIVE
    monkeypatch.setitem(names.ARCHIVES, "bart.base", server.url("/fairseq/models/bart.base.tar.gz"))
    return server


def refused(kind: type[Exception], match: str, name: str | Path, **options) -> str:
    with pytest.raises(kind, match=match) as caught:
        zoo.locate(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def left_in(folder: Path) -> list[str]:
    """What is in a cache, but for lock files."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# --- Paths ----------------------------------------------------------------------------------------


def test_folders_and_checkpoints_are_given_back(tmp_path, monkeypatch, own_caches):
    for name in ("model.pt", "model.safetensors", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(b"\x80\x02")
        assert zoo.locate(tmp_path / name) == tmp_path / name
    assert zoo.locate(tmp_path) == zoo.locate(str(tmp_path)) == tmp_path
    assert zoo.locate(f"file://{tmp_path}/model.pt") == tmp_path / "model.pt"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert zoo.locate("~/model.pt") == tmp_path / "model.pt"
    assert not list(own_caches.rglob("*"))


def test_a_folder_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("bart.base", "facebook/bart-base"):
        (tmp_path / name).mkdir(parents=True)
        assert zoo.locate(name) == Path(name)


@pytest.mark.parametrize(
    "content",
    [ARCHIVE, zip_bytes(MODEL), tar_bytes(MODEL, "w:bz2")],
    ids=["tar.gz", "zip", "tar.bz2"],
)
def test_an_archive_is_unpacked_into_the_cache_once(tmp_path, content):
    path = tmp_path / "bart.tiny.archive"
    path.write_bytes(content)
    folder = zoo.locate(path, cache_dir=tmp_path / "cache")
    assert contents(folder) == MODEL
    assert folder.is_relative_to(tmp_path / "cache")
    (folder / "mark").touch()
    assert "mark" in contents(zoo.locate(path, cache_dir=tmp_path / "cache"))
    again = zoo.locate(path, cache_dir=tmp_path / "cache", force_reload=True)
    assert again == folder and contents(again) == MODEL


def test_a_changed_archive_is_unpacked_again(tmp_path):
    path = tmp_path / "m.tar.gz"
    path.write_bytes(ARCHIVE)
    folder = zoo.locate(path, cache_dir=tmp_path / "cache")
    path.write_bytes(tar_bytes(OTHER))
    assert contents(zoo.locate(path, cache_dir=tmp_path / "cache")) == OTHER
    assert len(left_in(tmp_path / "cache")) == 1  # the old files are gone
    # of the same size: the time tells
    same_size = {**OTHER, "NOTE": b"ANOTHER model"}
    status = path.stat()
    path.write_bytes(tar_bytes(same_size, "w:"))
    zoo.locate(path, cache_dir=tmp_path / "cache")
    path.write_bytes(tar_bytes(OTHER, "w:"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 5))
    assert contents(zoo.locate(path, cache_dir=tmp_path / "cache")) == OTHER
    assert folder.exists()


def test_archives_of_the_same_name_do_not_meet(tmp_path):
    for name, files in (("a", MODEL), ("b", OTHER)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.tar.gz").write_bytes(tar_bytes(files))
    for name, files in (("a", MODEL), ("b", OTHER)):
        found = zoo.locate(tmp_path / name / "m.tar.gz", cache_dir=tmp_path / "cache")
        assert contents(found) == files


@pytest.mark.parametrize(
    "content",
    [ARCHIVE[:-9], ARCHIVE[:50], b"<html>", b"PK\x03\x04", b""],
    # Not the content, which holds the time and is another in another process.
    ids=["without its end", "its beginning", "html", "zip's first bytes", "empty"],
)
def test_an_unreadable_archive_leaves_nothing(tmp_path, content):
    (tmp_path / "m.tar.gz").write_bytes(content)
    (tmp_path / "cache").mkdir()
    path = tmp_path / "m.tar.gz"
    message = refused(CheckpointError, "m.tar.gz", path, cache_dir=tmp_path / "cache")
    assert message.startswith(str(path))
    assert left_in(tmp_path / "cache") == []


def test_a_special_file_is_no_model(tmp_path):
    refused(CheckpointError, "/dev/null is neither .* nor an archive .*: it is empty", "/dev/null")


# --- Names and addresses --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bart.base", "bart_base"])
def test_a_name_of_fairseqs(published, own_caches, name):
    folder = zoo.locate(name)
    assert contents(folder) == MODEL
    assert folder.is_relative_to(own_caches / "torch" / "bart_hk")
    assert zoo.locate("bart.base") == folder
    assert len(published.asked) == 1
    assert len(left_in(own_caches / "torch" / "bart_hk")) == 1  # the archive is not kept
    published.files["/fairseq/models/bart.base.tar.gz"] = tar_bytes(OTHER)
    assert zoo.locate(name, force_reload=True) == folder
    assert contents(folder) == OTHER


def test_an_address_of_an_archive(server, tmp_path):
    server.files["/x/m.zip"] = zip_bytes(MODEL)
    folder = zoo.locate(server.url("/x/m.zip?download=1"), cache_dir=tmp_path / "c")
    assert contents(folder) == MODEL


def test_an_address_of_a_checkpoint(server, tmp_path):
    server.files["/x/my%20best.pt"] = MODEL["model.pt"]
    url = server.url("/x/my%20best.pt")
    file = zoo.locate(url, cache_dir=tmp_path / "c")
    assert file.name == "my best.pt"
    assert file.read_bytes() == MODEL["model.pt"]
    assert zoo.locate(url, cache_dir=tmp_path / "c") == file
    assert len(server.asked) == 1
    assert len(left_in(tmp_path / "c")) == 1


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"BART_HK_CACHE": "1", "PYTORCH_FAIRSEQ_CACHE": "2", "TORCH_HOME": "3"}, "1"),
        ({"PYTORCH_FAIRSEQ_CACHE": "2", "TORCH_HOME": "3", "XDG_CACHE_HOME": "4"}, "2"),
        ({"TORCH_HOME": "3", "XDG_CACHE_HOME": "4"}, "3/bart_hk"),
        ({"XDG_CACHE_HOME": "4"}, "4/torch/bart_hk"),
        ({"BART_HK_CACHE": ""}, "home/.cache/torch/bart_hk"),
    ],
)
def test_where_the_cache_is(tmp_path, monkeypatch, published, variables, folder):
    for name in ("BART_HK_CACHE", "PYTORCH_FAIRSEQ_CACHE", "TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
        if variables.get(name):
            monkeypatch.setenv(name, str(tmp_path / variables[name]))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert zoo.locate("bart.base").is_relative_to(tmp_path / folder)
    assert zoo.locate("bart.base", cache_dir=tmp_path / "given").is_relative_to(tmp_path / "given")


def test_what_fairseq_has_downloaded_is_used(published, tmp_path, monkeypatch):
    monkeypatch.setitem(names.ARCHIVES, "bart.base", "https://example.invalid/bart.base.tar.gz")
    monkeypatch.setenv("PYTORCH_FAIRSEQ_CACHE", str(tmp_path))
    digest = hashlib.sha256(b"http://example.invalid/bart.base.tar.gz").hexdigest()
    theirs = tmp_path / f"{digest}.{hashlib.sha256(b'etag').hexdigest()}"
    theirs.mkdir()
    (theirs / "model.pt").write_bytes(b"x")
    assert zoo.locate("bart.base", local_files_only=True) == theirs


def test_a_known_checksum_is_compared(server, tmp_path):
    server.files["/m.tar.gz"] = ARCHIVE
    right, wrong = hashlib.sha256(ARCHIVE).hexdigest(), "0" * 64
    locate = functools.partial(zoo.locate, cache_dir=tmp_path / "c")
    with pytest.raises(CheckpointError, match=f"its SHA-256 is {right}, not {wrong}"):
        locate(server.url(f"/m.tar.gz#sha256={wrong}"))
    assert left_in(tmp_path / "c") == []
    assert contents(locate(server.url(f"/m.tar.gz#sha256={right.upper()}"))) == MODEL
    server.asked.clear()
    locate(server.url(f"/m.tar.gz#sha256={right}"))
    locate(server.url("/m.tar.gz"))
    assert server.asked == []
    with pytest.raises(CheckpointError):  # what is here has another one
        locate(server.url(f"/m.tar.gz#sha256={wrong}"))


@pytest.mark.parametrize("sha", ["sha256=12", "sha256=" + "x" * 64])
def test_a_checksum_that_is_none(server, tmp_path, sha):
    refused(ValueError, "is no SHA-256", server.url(f"/m.tar.gz#{sha}"), cache_dir=tmp_path)
    assert server.asked == []


def test_a_login_page_is_no_model(server, tmp_path):
    server.files["/m.tar.gz"] = b"<!DOCTYPE html><html>Please log in</html>"
    url = server.url("/m.tar.gz")
    message = refused(CheckpointError, "is no model", url, cache_dir=tmp_path)
    assert message.startswith(f"what was downloaded from {url} is no model: ")
    assert "begins with '<!DOCTYPE html><'" in message and "it was removed" in message
    assert left_in(tmp_path) == []


def test_a_damaged_download_is_removed(server, tmp_path):
    """The next call starts anew."""
    server.files["/m.tar.gz"] = ARCHIVE
    server.faults = [servers.claim(len(ARCHIVE) - 9)]
    refused(CheckpointError, "is no model: .*", server.url("/m.tar.gz"), cache_dir=tmp_path)
    assert left_in(tmp_path) == []
    assert contents(zoo.locate(server.url("/m.tar.gz"), cache_dir=tmp_path)) == MODEL


def test_a_broken_download_is_resumed_by_the_next_call(server, tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.files["/m.tar"] = tar_bytes(MODEL, "w:")
    server.faults = [servers.drop(50_000)] + [servers.hang_up] * 4
    refused(ConnectionError, "failed 5 times in a row", server.url("/m.tar"), cache_dir=tmp_path)
    server.asked.clear()
    assert contents(zoo.locate(server.url("/m.tar"), cache_dir=tmp_path)) == MODEL
    assert server.ranges_asked() == ["bytes=50000-"]


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (servers.status(404), FileNotFoundError, "answers 404 Not Found"),
        (servers.status(403), ConnectionError, "answers 403 Forbidden"),
        (servers.status(500), ConnectionError, "failed 5 times in a row: .* answers 500"),
        (servers.claim(10**9), ConnectionError, "ends after .* of 1000000000 bytes"),
        (servers.hang_up, ConnectionError, "failed 5 times in a row: "),
    ],
)
def test_what_a_server_does_is_said_in_one_line(
    published, monkeypatch, own_caches, fault, kind, says
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    published.faults = [fault] * 9
    message = refused(kind, says, "bart.base")
    assert message.startswith("no model 'bart.base': it is not in the cache ")
    assert str(own_caches / "torch" / "bart_hk") in message
    assert published.url("/fairseq/models/bart.base.tar.gz") in message
    assert message.endswith(
        "bring that file from elsewhere and give its path, bart_hk.load('./bart.base.tar.gz')"
    )


# --- Without network ------------------------------------------------------------------------------


def test_without_network(own_caches, monkeypatch):
    url = "http://no-such-host.invalid/bart.base.tar.gz"
    monkeypatch.setitem(names.ARCHIVES, "bart.base", url)
    message = refused(ConnectionError, f"and {url} cannot be reached: ", "bart.base")
    assert message.startswith("no model 'bart.base': it is not in the cache ")
    assert "bart_hk.load('./bart.base.tar.gz')" in message


@pytest.mark.parametrize("how", ["argument", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_local_files_only(published, monkeypatch, how):
    def offline(name="bart.base"):
        if how == "argument":
            return zoo.locate(name, local_files_only=True)
        with monkeypatch.context() as patch:
            patch.setenv(how, "1")
            return zoo.locate(name)

    with pytest.raises(FileNotFoundError, match="the network is not to be used") as caught:
        offline()
    message = str(caught.value)
    assert message.startswith("no model 'bart.base': it is not in the cache ")
    assert "bart_hk.load('./bart.base.tar.gz')" in message
    assert published.asked == []
    folder = zoo.locate("bart.base")
    assert offline() == folder
    assert len(published.asked) == 1


def test_a_file_brought_by_hand_is_what_the_name_gives(published, tmp_path):
    (tmp_path / "bart.base.tar.gz").write_bytes(ARCHIVE)
    by_hand = zoo.locate(tmp_path / "bart.base.tar.gz")
    assert contents(by_hand) == contents(zoo.locate("bart.base"))


# --- Several at once ------------------------------------------------------------------------------

LOOP = """
import sys, time
from pathlib import Path
from bart_hk import zoo

url, folder, barrier, force = sys.argv[1:]
Path(barrier, sys.argv[0] + str(time.time_ns())).touch()
while len(list(Path(barrier).iterdir())) < 4:
    time.sleep(0.01)
for _ in range(20):
    found = zoo.locate(url, cache_dir=folder, force_reload=bool(int(force)) and _ % 5 == 0)
    assert (found / "model.pt").stat().st_size == 102402, found
print(found)
"""


@pytest.mark.parametrize("force", [False, True])
def test_several_processes_at_once(server, tmp_path, force):
    server.files["/m.tar.gz"] = ARCHIVE
    server.faults = [servers.slow(5, 0.05)]
    (tmp_path / "barrier").mkdir()
    arguments = [server.url("/m.tar.gz"), tmp_path / "c", tmp_path / "barrier", int(force)]
    command = [sys.executable, "-c", LOOP, *map(str, arguments)]
    children = [
        subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    outputs = [child.communicate(timeout=60) for child in children]
    assert [child.returncode for child in children] == [0] * 4, outputs
    (found,) = {out.strip() for out, _ in outputs}
    assert contents(Path(found)) == MODEL
    assert len(left_in(tmp_path / "c")) == 1
    if not force:
        assert len(server.asked) == 1


def test_who_waits_is_told(server, tmp_path, caplog):
    server.files["/m.tar.gz"] = ARCHIVE
    entry = cache.Entry(tmp_path, server.url("/m.tar.gz"))
    released = threading.Event()

    def hold():
        with entry.lock():
            released.wait(1.5)

    holder = threading.Thread(target=hold)
    holder.start()
    while not entry.beside(".lock").exists():
        pass
    assert contents(zoo.locate(server.url("/m.tar.gz"), cache_dir=tmp_path)) == MODEL
    holder.join()
    assert f"waiting for another process, which is fetching {entry.source}" in caplog.text


def test_a_killed_process_leaves_nothing_that_is_taken_for_a_model(tmp_path):
    """It dies at each step that changes a file or folder; the next one starts anew."""
    program = """
import os, sys
from pathlib import Path
from bart_hk import zoo

def dying(function, countdown):
    def call(*args, **kwargs):
        countdown[0] -= 1
        if countdown[0] == 0:
            os._exit(9)
        return function(*args, **kwargs)
    return call

countdown = [int(sys.argv[3])]
for name in ("rename", "mkdir", "rmdir", "unlink", "fsync"):
    setattr(os, name, dying(getattr(os, name), countdown))
zoo.locate(sys.argv[1], cache_dir=sys.argv[2], force_reload=True)
"""
    (tmp_path / "m.tar.gz").write_bytes(ARCHIVE)
    arguments = [str(tmp_path / "m.tar.gz"), str(tmp_path / "c")]
    for moment in range(1, 40):
        command = [sys.executable, "-c", program, *arguments, str(moment)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode in (0, 9), done.stderr
        found = zoo.locate(arguments[0], cache_dir=arguments[1])
        assert contents(found) == MODEL, moment
        assert len(left_in(tmp_path / "c")) in (1, 2, 3)
        if done.returncode == 0:
            break
    assert 8 < moment < 39
    zoo.locate(arguments[0], cache_dir=arguments[1], force_reload=True)
    assert len(left_in(tmp_path / "c")) == 1


@pytest.mark.parametrize("note", ["", "{", "[]", "null", '{"source": "x"}', '{"file": 5}'])
def test_a_damaged_entry_is_made_anew(tmp_path, note):
    (tmp_path / "m.tar.gz").write_bytes(ARCHIVE)
    folder = zoo.locate(tmp_path / "m.tar.gz", cache_dir=tmp_path / "c")
    (folder.parent / "source.json").write_text(note)
    (folder / "model.pt").unlink()
    assert contents(zoo.locate(tmp_path / "m.tar.gz", cache_dir=tmp_path / "c")) == MODEL


# --- No space, no permission ----------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 40_000])
def test_no_space_while_unpacking(tmp_path, limit):
    (tmp_path / "m.tar.gz").write_bytes(ARCHIVE)
    (tmp_path / "c").mkdir()
    with small_disk(limit), pytest.raises(OSError, match="no space in the cache") as caught:
        zoo.locate(tmp_path / "m.tar.gz", cache_dir=tmp_path / "c")
    assert "name another place with cache_dir= or $BART_HK_CACHE" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left_in(tmp_path / "c") == []
    assert contents(zoo.locate(tmp_path / "m.tar.gz", cache_dir=tmp_path / "c")) == MODEL


@pytest.mark.parametrize("limit", [10, 40_000])
def test_no_space_while_downloading(server, tmp_path, limit):
    server.files["/m.tar"] = tar_bytes(MODEL, "w:")
    url = server.url("/m.tar")
    with small_disk(limit), pytest.raises(OSError, match="no space in the cache") as caught:
        zoo.locate(url, cache_dir=tmp_path / "c")
    assert "cache_dir= or $BART_HK_CACHE" in str(caught.value) and "\n" not in str(caught.value)
    assert contents(zoo.locate(url, cache_dir=tmp_path / "c")) == MODEL


def test_no_space_for_what_a_server_announces(server, tmp_path):
    server.files["/m.tar.gz"] = ARCHIVE
    server.faults = [servers.claim(10**17)]
    url = server.url("/m.tar.gz")
    message = refused(OSError, f"no space in the cache .*{url} needs", url, cache_dir=tmp_path)
    assert "100000000.0 GB" in message


@pytest.mark.parametrize("sub", ["", "deeper"])
def test_a_read_only_cache(read_only, server, sub):
    server.files["/m.tar.gz"] = ARCHIVE
    archive = read_only / "m.tar.gz"
    archive.write_bytes(ARCHIVE)
    folder = read_only / sub
    with as_nobody(read_only):
        for name in (archive, server.url("/m.tar.gz")):
            message = refused(OSError, "cannot be written", name, cache_dir=folder)
            assert message.startswith(f"the cache {folder} cannot be written (Permission denied)")
            assert "name another place with cache_dir= or $BART_HK_CACHE" in message
    assert server.asked == []


def test_a_read_only_cache_is_read(read_only, server):
    server.files["/m.tar.gz"] = ARCHIVE
    archive = read_only / "m.tar.gz"
    archive.write_bytes(ARCHIVE)
    found = {
        name: zoo.locate(name, cache_dir=read_only / "c")
        for name in (archive, server.url("/m.tar.gz"))
    }
    with as_nobody(read_only):
        for name, folder in found.items():
            assert zoo.locate(name, cache_dir=read_only / "c") == folder
            assert contents(folder) == MODEL


def test_a_cache_that_is_a_file(tmp_path):
    (tmp_path / "c").touch()
    (tmp_path / "m.tar.gz").write_bytes(ARCHIVE)
    for place in ("c", "c/deeper"):
        folder = tmp_path / place
        refused(
            OSError,
            f"the cache {folder} cannot be written",
            tmp_path / "m.tar.gz",
            cache_dir=folder,
        )


def test_a_read_only_file_system(tmp_path, monkeypatch):
    (tmp_path / "m.tar.gz").write_bytes(ARCHIVE)

    def refuse(path, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "mkdir", refuse)
    message = refused(
        OSError, "Read-only file system", tmp_path / "m.tar.gz", cache_dir=tmp_path / "c"
    )
    assert message.startswith(f"the cache {tmp_path / 'c'} cannot be written")


def test_an_archive_that_may_not_be_read(read_only):
    path = read_only / "m.tar.gz"
    path.write_bytes(ARCHIVE)
    cache_dir = Path(tempfile.mkdtemp())
    cache_dir.chmod(0o777)
    with as_nobody(read_only):
        if os.geteuid() == os.getuid():
            path.chmod(0o000)
        else:
            os.seteuid(0)
            path.chmod(0o000)
            os.seteuid(65534)
        with pytest.raises(PermissionError) as caught:
            zoo.locate(path, cache_dir=cache_dir)
    assert str(path) in str(caught.value)
    shutil.rmtree(cache_dir)


def test_a_bomb_leaves_nothing(server, tmp_path, monkeypatch):
    from bart_hk.zoo import archives

    monkeypatch.setattr(archives, "SMALL", 1 << 20)
    server.files["/m.tar.gz"] = gzip.compress(tar_bytes({"model.pt": bytes(30 << 20)}, "w:"))
    refused(CheckpointError, "as bombs do", server.url("/m.tar.gz"), cache_dir=tmp_path)
    assert left_in(tmp_path) == []


# --- The import -----------------------------------------------------------------------------------


def test_the_import_is_light():
    program = (
        "import sys; from bart_hk import zoo; zoo.locate('.')\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"numpy", "jax", "huggingface_hub", "filelock", "tqdm", "http", "tarfile", "zipfile"}
    assert not set(done.stdout.split()) & heavy
