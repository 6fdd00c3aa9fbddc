"""Archives: what is unpacked, and what is refused without leaving a trace."""

import bz2
import gzip
import io
import random
import re
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest

from bart_hk.errors import CheckpointError
from bart_hk.zoo import archives, tar
from tests.zoo.conftest import MODEL, contents, tar_bytes, zip_bytes

ALL = {
    "m.tar.gz": tar_bytes(MODEL),
    "m.tgz": tar_bytes(MODEL),
    "m.tar.bz2": tar_bytes(MODEL, "w:bz2"),
    "m.tar": tar_bytes(MODEL, "w:"),
    "m.zip": zip_bytes(MODEL),
    "stored.zip": zip_bytes(MODEL, method=zipfile.ZIP_STORED),
    "misnamed.bin": tar_bytes(MODEL),
}


def unpack(folder: Path, content: bytes, name: str = "m.tar.gz") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    assert archives.is_archive(folder / name)
    archives.unpack(folder / name, folder / "out")
    return folder / "out"


def refused(folder: Path, content: bytes, match: str, name: str = "m.tar.gz") -> str:
    """`content` is refused in one line that names the file, and nothing is written around it."""
    outside = folder / "outside"
    inside = outside / "deeper" / "still"
    inside.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=match) as caught:
        unpack(inside, content, name)
    message = str(caught.value)
    assert message.startswith(f"{inside / name}: ")
    assert "\n" not in message and len(message) < 600
    assert [p.name for p in outside.iterdir()] == ["deeper"]
    assert [p.name for p in inside.parent.iterdir()] == ["still"]
    assert not (inside / "out").exists()
    return message


# --- What is there --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_format_is_told_by_its_content(tmp_path, name):
    assert contents(unpack(tmp_path, ALL[name], name)) == MODEL


@pytest.mark.parametrize("top", ["", "./", "bart.tiny/", "./bart.tiny/"])
@pytest.mark.parametrize("make", [tar_bytes, zip_bytes])
def test_a_single_top_folder_is_left_out(tmp_path, make, top):
    assert contents(unpack(tmp_path, make(MODEL, top=top))) == MODEL


def test_folders_inside_stay(tmp_path):
    files = {"model.pt": b"x", "input0/dict.txt": b"a 1\n", "label/dict.txt": b"b 1\n"}
    assert contents(unpack(tmp_path / "tar", tar_bytes(files))) == files
    assert contents(unpack(tmp_path / "zip", zip_bytes(files))) == files


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar(tmp_path, format):
    """Long names and names beyond ASCII, as Python writes them, with folders of their own."""
    source = tmp_path / "source"
    files = {
        "model.pt": b"m" * 1000,
        "é/ü.txt": b"1",
        "d" * 90 + "/" + "n" * 95: b"2",
        "empty": b"",
    }
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=format) as archive:
        archive.add(source, "top")
    assert contents(unpack(tmp_path, out.getvalue())) == files


def test_what_tar_writes_itself(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name, content in MODEL.items():
        (source / name).write_bytes(content)
    (source / ("n" * 200)).write_bytes(b"long")
    subprocess.run(["tar", "cf", tmp_path / "gnu.tar", "-C", source, "."], check=True)
    out = unpack(tmp_path / "there", (tmp_path / "gnu.tar").read_bytes())
    assert contents(out) == {**MODEL, "n" * 200: b"long"}


def test_sizes_beyond_octal_digits():
    """GNU writes sizes from 8 GiB on in binary, pax in a record of its own."""
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        info = tarfile.TarInfo("model.pt")
        info.size = 20 << 30
        member = tar.next_member(io.BytesIO(info.tobuf(format) + bytes(1024)).read)
        assert (member.name, member.size) == ("model.pt", 20 << 30)


def test_what_macos_adds_is_left_out(tmp_path):
    litter = {"bart/._model.pt": b"x", "bart/.DS_Store": b"x", "__MACOSX/bart/._dict.txt": b"x"}
    files = {f"bart/{name}": content for name, content in MODEL.items()}
    assert contents(unpack(tmp_path / "tar", tar_bytes(litter | files, top=""))) == MODEL
    assert contents(unpack(tmp_path / "zip", zip_bytes(litter | files, top=""))) == MODEL


def test_permissions_are_the_users_own(tmp_path):
    info = tarfile.TarInfo("model.pt")
    info.mode, info.uid, info.size = 0o4777, 12345, 1
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(info, io.BytesIO(b"x"))
    status = (unpack(tmp_path, out.getvalue()) / "model.pt").stat()
    assert not status.st_mode & (stat.S_ISUID | stat.S_IXUSR | stat.S_IWOTH)
    assert status.st_uid != 12345


@pytest.mark.parametrize("name", ["archive/data.pkl", "data.pkl", "some.name/data.pkl"])
def test_torchs_own_zip_files_are_checkpoints(tmp_path, name):
    path = tmp_path / "checkpoint_without_an_ending"
    path.write_bytes(zip_bytes({name: b"\x80\x02}.", "archive/version": b"3"}, top=""))
    assert not archives.is_archive(path)


def test_checkpoints_are_no_archives(tmp_path):
    for name, content in (
        ("legacy.pt", b"\x80\x02"),
        ("m.safetensors", b"12345678{}"),
        ("e.bin", b""),
    ):
        (tmp_path / name).write_bytes(content)
        assert not archives.is_archive(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"<!DOCTYPE html><html>", "begins with '<!DOCTYPE html><'"), (b"", "it is empty")],
)
def test_something_else(tmp_path, content, says):
    (tmp_path / "m.tar.gz").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(says)) as caught:
        archives.is_archive(tmp_path / "m.tar.gz")
    assert str(tmp_path / "m.tar.gz") in str(caught.value)
    assert ".tar.bz2" in str(caught.value)  # what can be read is listed


# --- Hostile names and kinds ----------------------------------------------------------------------

CLIMBING = ["../evil", "a/../../evil", "..", "/tmp/evil", "//evil", "a\\..\\evil", "C:/evil"]


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("make", [tar_bytes, zip_bytes])
def test_names_that_climb_out(tmp_path, make, name):
    refused(
        tmp_path, make({"model.pt": b"x", name: b"evil"}, top=""), "name .* in it (is|leads|has)"
    )


def test_a_zip_name_with_a_nul(tmp_path):
    content = zip_bytes({"model.ptQ../evil": b"x"}, top="").replace(b"ptQ..", b"pt\0..")
    refused(tmp_path, content, "in it")


@pytest.mark.parametrize("name", ["x" * 300, "/".join("abcdefgh" * 9)])
@pytest.mark.parametrize("make", [tar_bytes, zip_bytes])
def test_names_that_no_disk_takes(tmp_path, make, name):
    refused(tmp_path, make({name: b"x"}, top=""), "too long or too deep")


KINDS = {
    "a symbolic link": tarfile.SYMTYPE,
    "a hard link": tarfile.LNKTYPE,
    "a device": tarfile.CHRTYPE,
    "a device ": tarfile.BLKTYPE,
    "a pipe": tarfile.FIFOTYPE,
    "a sparse file": tarfile.GNUTYPE_SPARSE,
    "the unknown type": b"Z",
}


@pytest.mark.parametrize("what", KINDS)
def test_members_that_are_no_files(tmp_path, what):
    """Among them a link through which the next member would be written elsewhere."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        info = tarfile.TarInfo("bart/escape")
        info.type, info.linkname = KINDS[what], str(tmp_path)
        archive.addfile(info)
        archive.addfile(tarfile.TarInfo("bart/escape/evil"))
    refused(tmp_path, out.getvalue(), what.strip())
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_zip_members_that_are_no_files(tmp_path, kind):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("escape")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, str(tmp_path))
    refused(tmp_path, out.getvalue(), "is a (link|device), which no model needs")


def test_a_name_twice(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for content in (b"good", b"evil"):
            info = tarfile.TarInfo("model.pt")
            info.size = 4
            archive.addfile(info, io.BytesIO(content))
    refused(tmp_path, out.getvalue(), "holds 'model.pt' twice")


def test_a_file_that_is_a_folder_as_well(tmp_path):
    refused(tmp_path / "1", tar_bytes({"a": b"x", "a/b": b"y"}), "both a file and a folder")
    refused(tmp_path / "2", tar_bytes({"a/b": b"y", "a": b"x"}), "twice|both")


def test_an_archive_without_files(tmp_path):
    refused(tmp_path / "1", tar_bytes({}), "holds no files")
    refused(tmp_path / "2", zip_bytes({}), "holds no files")


# --- Damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.tar.gz", "m.tar.bz2", "m.tar", "m.zip"])
def test_every_truncation_is_found(tmp_path, name):
    content = ALL[name]
    # A tar file may lack the zeros that fill its last 10 KiB, but not its two end blocks.
    whole = content if name != "m.tar" else content.rstrip(b"\0")
    for length in {*range(3, 40), *range(40, len(whole), len(whole) // 60), len(whole) - 1}:
        folder = tmp_path / str(length)
        folder.mkdir()
        (folder / name).write_bytes(content[:length])
        with pytest.raises(CheckpointError) as caught:
            archives.is_archive(folder / name)
            archives.unpack(folder / name, folder / "out")
        assert "\n" not in str(caught.value) and name in str(caught.value)
        assert not (folder / "out").exists()
        shutil.rmtree(folder)


def test_a_wrong_crc_is_found(tmp_path):
    packed = bytearray(gzip.compress(tar_bytes(MODEL, "w:"), 0))  # stored: a flip stays a file
    place = packed.index(MODEL["dict.txt"])
    packed[place] ^= 1
    refused(tmp_path / "gz", bytes(packed), "CRC check failed")
    packed = bytearray(zip_bytes(MODEL, method=zipfile.ZIP_STORED))
    packed[packed.index(MODEL["dict.txt"])] ^= 1
    refused(tmp_path / "zip", bytes(packed), "Bad CRC-32")
    packed = bytearray(ALL["m.tar.bz2"])
    packed[len(packed) // 2] ^= 1
    refused(tmp_path / "bz2", bytes(packed), "damaged")


def test_a_header_that_is_damaged(tmp_path):
    packed = bytearray(ALL["m.tar"])
    packed[5] ^= 1
    refused(tmp_path, gzip.compress(bytes(packed)), "header in it is damaged")


def test_encrypted_and_exotic_zips(tmp_path):
    content = bytearray(zip_bytes(MODEL))
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        for match in re.finditer(signature, bytes(content)):
            content[match.start() + flags] |= 1
    refused(tmp_path / "encrypted", bytes(content), "encrypted")
    packed = zip_bytes(MODEL, method=zipfile.ZIP_LZMA)
    refused(tmp_path / "lzma", packed, "compressed by method 14")


def test_sizes_that_lie(tmp_path):
    info = tarfile.TarInfo("model.pt")
    info.size = 1 << 20
    refused(tmp_path / "tar", gzip.compress(info.tobuf() + bytes(2048)), "cut short")
    content = bytearray(zip_bytes({"model.pt": b"x" * 1000}))
    place = content.index(b"PK\x01\x02") + 24
    content[place : place + 4] = struct.pack("<I", 500)
    refused(tmp_path / "zip", bytes(content), "m.tar.gz")


# --- Bombs ----------------------------------------------------------------------------------------


@pytest.fixture
def small_bounds(monkeypatch):
    monkeypatch.setattr(archives, "SMALL", 1 << 20)


def zeros_in_tar(count: int) -> bytes:
    info = tarfile.TarInfo("model.pt")
    info.size = count
    return info.tobuf() + bytes(count) + bytes(1024)


def peak_of(function) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_tar_bombs(tmp_path, small_bounds, pack):
    content = pack(zeros_in_tar(64 << 20))
    peak = peak_of(lambda: refused(tmp_path, content, "unpacks to more than 100 times"))
    assert peak < 8e6


def test_zip_bombs(tmp_path, small_bounds):
    one = {"a": bytes(64 << 20)}
    content = zip_bytes(one)
    assert peak_of(lambda: refused(tmp_path / "1", content, "unpacks to more than")) < 12e6
    # The size in the directory says nothing of it.
    place = content.index(b"PK\x01\x02") + 24
    lying = content[:place] + struct.pack("<I", 10) + content[place + 4 :]
    refused(tmp_path / "2", lying, "m.tar.gz")
    # Many members share the same compressed bytes (Fifield 2019).
    many = zip_bytes({f"file{i:02}": b"" for i in range(30)} | {"z": bytes(1 << 20)}, top="")
    data = many.index(b"PK\x03\x04", many.index(b"file29"))
    out, start = bytearray(many), many.index(b"PK\x01\x02")
    sizes = many[many.rindex(b"PK\x01\x02") + 16 :][:12]
    for match in re.finditer(b"PK\x01\x02", many[start:]):
        entry = start + match.start()
        out[entry + 10 : entry + 12] = struct.pack("<H", 8)
        out[entry + 16 : entry + 28] = sizes
        out[entry + 42 : entry + 46] = struct.pack("<I", data)
    refused(tmp_path / "3", bytes(out), "m.tar.gz")


def test_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 20)
    files = {f"{i}": b"" for i in range(21)}
    refused(tmp_path / "tar", tar_bytes(files), "more than 20 members")
    refused(tmp_path / "zip", zip_bytes(files), "more than 20 members")
    folders = b"".join(tarfile.TarInfo(f"{i}/").tobuf().replace(b"x", b"x") for i in range(21))
    refused(tmp_path / "folders", gzip.compress(folders + bytes(1024)), "more than 20 members")


def extended(kind: bytes, size: int, content: bytes = b"") -> bytes:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT) + content


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_extended_headers_that_want_memory(tmp_path, kind):
    content = gzip.compress(extended(kind, 1 << 30, bytes(32 << 20)))
    peak = peak_of(lambda: refused(tmp_path, content, "extended header in it claims"))
    assert peak < 4e6


def test_extended_headers_without_end(tmp_path):
    """tarfile follows them recursively."""
    record = b"13 path=a/bc\n".ljust(512, b"\0")
    chain = extended(b"x", 13, record) * 3000
    refused(tmp_path, gzip.compress(chain + zeros_in_tar(0)), "follow one another")


@pytest.mark.parametrize(
    "records",
    [
        b"99 path=x\n",
        b"path=x\n",
        b"0 path=x\n",
        b"9999999999999999999999 path=x\n",
        b"11 size=-1\n",
        b"12 size=1e9\n",
        b"8 path=x",
        b"7 path\n",
    ],
)
def test_extended_headers_that_make_no_sense(tmp_path, records):
    content = extended(b"x", len(records), records.ljust(512, b"\0")) + zeros_in_tar(10)
    refused(tmp_path, gzip.compress(content), "extended header in it")


def test_a_tail_without_end(tmp_path):
    content = gzip.compress(zeros_in_tar(10) + bytes(8 << 20))
    refused(tmp_path, content, "follow its end mark")


def test_a_zip_directory_that_wants_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_MAX_DIRECTORY", 1 << 12)
    files = {f"file{i}": b"" for i in range(200)}
    message = ""
    with pytest.raises(CheckpointError, match="directory claims") as caught:
        unpack(tmp_path, zip_bytes(files))
    message = str(caught.value)
    assert message.startswith(str(tmp_path))


def test_a_disk_that_is_too_small_is_no_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 0, 1000))
    with pytest.raises(OSError, match="no space in the cache .* 'bart.tiny/model.pt' unpacks to"):
        unpack(tmp_path, tar_bytes(MODEL))


# --- Everything else ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.tar.gz", "m.tar.bz2", "m.tar", "m.zip", "stored.zip"])
def test_mutations_end_in_files_or_in_one_exception(tmp_path, name):
    """A short run; `tools/fuzz.py` has the long one."""
    rng = random.Random(name)
    files = {"model.pt": b"\x80\x02" + bytes(300), "dict.txt": b"a 1\n", "l/dict.txt": b"b 1\n"}
    mode = {"m.tar.gz": "w:gz", "m.tar.bz2": "w:bz2", "m.tar": "w:"}.get(name)
    stored = zipfile.ZIP_STORED if name == "stored.zip" else zipfile.ZIP_DEFLATED
    valid = tar_bytes(files, mode) if mode else zip_bytes(files, method=stored)
    outcomes = {True: 0, False: 0}
    for _ in range(250):
        content = bytearray(valid)
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(len(content))
            if rng.random() < 0.7:
                content[place] = rng.choice((0, 255, content[place] ^ (1 << rng.randrange(8))))
            else:
                content[place : place + rng.randrange(1, 40)] = rng.randbytes(rng.randrange(40))
        path = tmp_path / name
        path.write_bytes(content)
        try:
            if archives.is_archive(path):
                archives.unpack(path, tmp_path / "out")
            outcomes[True] += 1
        except CheckpointError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            outcomes[False] += 1
        for folder in ("out", "out.unpacking"):
            shutil.rmtree(tmp_path / folder, ignore_errors=True)
        assert [p.name for p in tmp_path.iterdir()] == [name]
    assert outcomes[False] > 20


def test_reading_an_archive_needs_little_memory(tmp_path):
    """Also where the operating system sets the bound."""
    (tmp_path / "m.tar.gz").write_bytes(gzip.compress(zeros_in_tar(90 << 20)))
    program = (
        "import resource, sys; from pathlib import Path; from bart_hk.zoo import archives\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (60 << 20, 60 << 20))\n"
        "archives.unpack(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, tmp_path / "m.tar.gz", tmp_path / "out"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / "out" / "model.pt").stat().st_size == 90 << 20
