"""Files that are replaced all together or not at all, and safetensors written piecemeal."""

import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file

from bart_hk.checkpoint import files


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, bfloat16])
def test_tensors_are_read_by_the_library(tmp_path, dtype):
    tensors = {
        "plain": np.arange(6).reshape(2, 3).astype(dtype),
        "transposed": np.arange(10).reshape(5, 2).astype(dtype).T,
        "odd": np.ones(3, dtype),
        "empty": np.ones((0, 4), dtype),
    }
    path = tmp_path / "some.safetensors"
    files.write_tensors(path, {name: lambda a=a: a for name, a in tensors.items()})
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    header_length = int.from_bytes(path.read_bytes()[:8], "little")
    assert header_length % 8 == 0  # the data is aligned


def test_writing_holds_one_tensor_at_a_time(tmp_path):
    tensors = {f"t{i}": np.ones((1000, 250), np.float32) for i in range(16)}  # 1 MB each
    tracemalloc.start()
    make = {name: lambda a=a: a.T for name, a in tensors.items()}
    files.write_tensors(tmp_path / "some.safetensors", make)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6


def test_integers_are_no_weights(tmp_path):
    with pytest.raises(ValueError, match="ids has dtype int32"):
        files.write_tensors(tmp_path / "x", {"ids": lambda: np.zeros(3, np.int32)})


def test_other_files_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "a").write_text("old")
    with files.replacing(tmp_path) as staging:
        (staging / "a").write_text("new")
        (staging / "deeper").mkdir()
        (staging / "deeper" / "b").write_text("b")
        assert (tmp_path / "a").read_text() == "old"
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == {
        "notes.txt",
        "a",
        "deeper/b",
    }
    assert (tmp_path / "a").read_text() == "new"


def test_an_exception_changes_nothing(tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises(KeyError), files.replacing(tmp_path) as staging:
        (staging / "a").write_text("new")
        raise KeyError
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


KILLED = """
import os, sys
from pathlib import Path
from bart_hk.checkpoint import files

directory = Path(sys.argv[1])
names = ("a", "b", "c")

def write(value):
    with files.replacing(directory) as staging:
        for name in names:
            (staging / name).write_text(value)

def dying(function, countdown):
    def call(*args, **kwargs):
        countdown[0] -= 1
        if countdown[0] == 0:
            os._exit(9)
        return function(*args, **kwargs)
    return call

found = []
for moment in range(1, 100):
    write("old")
    child = os.fork()
    if not child:
        countdown = [moment]
        for name in ("fsync", "replace", "rename", "mkdir", "open", "rmdir", "unlink"):
            setattr(os, name, dying(getattr(os, name), countdown))
        write("new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    files.finish_replacing(directory)
    values = {(directory / name).read_text() for name in names}
    assert len(values) == 1, (moment, values)
    found.append(values.pop())
    if code == 0:
        break
assert code == 0
print(" ".join(found))
"""


def test_a_kill_at_any_moment_leaves_all_old_or_all_new(tmp_path):
    """A process is killed before each of its calls that touch the disk, one after the other."""
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=_root(), timeout=60)
    assert done.returncode == 0, done.stderr
    found = done.stdout.split()
    assert found == sorted(found, reverse=True)  # old, ..., old, new, ..., new
    assert found.count("old") >= 5 and found.count("new") >= 5


def _root() -> Path:
    return Path(__file__).resolve().parents[2]


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    message = r"cannot save in .*file/model: Not a directory"
    with pytest.raises(OSError, match=message) as caught, files.replacing(tmp_path / "file/model"):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no some.json"),
        ("{", "some.json is not valid JSON"),
        ("[1]", "some.json holds no JSON object but a list"),
        ("\xff", "some.json is not valid JSON"),
    ],
)
def test_bad_json(tmp_path, content, message):
    path = tmp_path / "some.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        files.read_json(path)
    assert "\n" not in str(caught.value) and os.fspath(tmp_path) in str(caught.value)


def test_a_new_directory_appears_when_it_is_whole(tmp_path):
    new = tmp_path / "deep" / "model"
    with pytest.raises(RuntimeError), files.replacing(new) as staging:
        (staging / "file").write_text("half")
        assert not new.exists()
        raise RuntimeError
    assert not list(new.parent.iterdir())
    left = new.parent / ".model.bart_hk_saving"  # as a killed process leaves it
    left.mkdir()
    (left / "other").touch()
    with files.replacing(new) as staging:
        (staging / "file").write_text("whole")
        assert not new.exists()
    assert [path.name for path in new.parent.iterdir()] == ["model"]
    assert [path.name for path in new.iterdir()] == ["file"]
