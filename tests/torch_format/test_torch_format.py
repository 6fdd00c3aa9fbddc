"""Files of torch.save: those that torch wrote are read, those that we write come back."""

import json
import mmap
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16

from bart_hk.errors import CheckpointError
from bart_hk.torch_format import Namespace, read_torch, write_torch
from tests.torch_format.descriptions import describe
from tests.torch_format.torch_bytes import (
    legacy_file,
    program,
    storage,
    tensor,
    text,
    zip_file,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens" / "torch_files"
FOUR = np.arange(1, 5, dtype=np.float32)


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize(
    "name", ["tensors", "values", "state_dict", "args", "cfg_plain", "cfg_omegaconf"]
)
def test_what_torch_saved(golden, name, container):
    """Values, dtypes, shapes, strides and shared storages, as torch itself described them."""
    expected = golden("torch_files/expected.json")["contents"][name]
    found = describe(read_torch(GOLDENS / f"{name}_{container}.pt"), expected)
    # As text, for NaN is not equal to itself.
    assert json.dumps(found, indent=0) == json.dumps(expected, indent=0)


def test_arrays_are_views_of_the_mapped_file():
    tensors = read_torch(GOLDENS / "tensors_zip.pt")
    bases = {type(_base(a)) for a in tensors.values() if a.size}
    assert bases == {mmap.mmap}
    assert tensors["float32"].base is not None and not tensors["float32"].flags.writeable
    assert np.shares_memory(tensors["float32"], tensors["transposed"])
    assert np.shares_memory(tensors["float32"], tensors["shared parameter"])
    assert not np.shares_memory(tensors["float32"], tensors["parameter"])


def _base(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return array


CONTENT = {
    "args": Namespace(arch="bart_base", lr=[3e-05], nested={"a": (1, ())}, none=None),
    "model": OrderedDict(
        {
            "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
            "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
            "scalar": np.asarray(2.5, np.float64),
            "empty": np.empty((0, 4), np.float16),
            "half": np.arange(5).astype(np.float16),
            "brain": np.arange(5).astype(bfloat16),
            "ids": np.arange(-3, 3),
            "flags": np.asarray([True, False]),
            "odd": np.ones(3, np.int8),
        }
    ),
    "numbers": [0, -1, 2**31, -(2**31) - 1, 2**100, 1e-300, float("inf"), True, False, None],
    "text": ("", "Ünï\u2028👍", b"\x00\xff"),
    3: {},
}


def test_what_we_write_comes_back(tmp_path):
    path = tmp_path / "model.pt"
    write_torch(path, CONTENT)
    found = read_torch(path)
    assert type(found["args"]) is Namespace
    model, expected = found.pop("model"), CONTENT["model"]
    assert found == {key: value for key, value in CONTENT.items() if key != "model"}
    assert list(map(type, found["numbers"])) == list(map(type, CONTENT["numbers"]))
    assert list(model) == list(expected)
    for name, array in expected.items():
        assert (model[name].dtype, model[name].shape) == (array.dtype, array.shape), name
        assert model[name].tobytes() == array.tobytes(), name
        assert model[name].flags.c_contiguous
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_the_container_is_a_whole_zip_file_with_aligned_members(tmp_path):
    path = tmp_path / "model.pt"
    write_torch(path, CONTENT)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[0] == "archive/data.pkl" and "archive/version" in names
    tensors = read_torch(path)["model"]
    assert len(names) == 3 + len(tensors)
    for name in ("matrix", "half", "brain", "odd"):
        assert tensors[name].__array_interface__["data"][0] % 64 == 0, name


def test_an_array_in_two_places_is_stored_once(tmp_path):
    table = np.ones((100, 100), np.float32)
    write_torch(tmp_path / "a", {"x": table, "y": table})
    write_torch(tmp_path / "b", {"x": table, "y": table.copy()})
    assert (tmp_path / "a").stat().st_size < 42_000 < 80_000 < (tmp_path / "b").stat().st_size
    found = read_torch(tmp_path / "a")
    assert np.shares_memory(found["x"], found["y"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.asarray(["a"]), "dtype <U1 cannot be a tensor"),
        (np.zeros(2, "M8[s]"), "cannot be a tensor"),
        (object(), "builtins.object has no place in a .pt file"),
        (2**3000, "integer of 3001 bits"),
    ],
)
def test_what_has_no_place_in_a_file(tmp_path, value, message):
    (tmp_path / "model.pt").write_bytes(b"old")
    with pytest.raises(TypeError, match=message):
        write_torch(tmp_path / "model.pt", {"a": [value]})
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == b"old"


FULL_DISK = """
import resource, signal, sys
import numpy as np
from bart_hk.torch_format import write_torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    write_torch(sys.argv[1], {"a": np.zeros(10**6, np.float32)})
except OSError as error:
    print(error.strerror)
"""


def test_a_full_disk_leaves_what_was_there(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"old")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "model.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "File too large\n", done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == b"old"


MEMORY = """
import resource, sys
import numpy as np
from bart_hk.torch_format import read_torch, write_torch

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

path = sys.argv[1]
part = np.zeros((1024, 2048), np.float32)  # 8 MB
before = peak()
write_torch(path, {"model": {"w": part + 1}, "optimizer": [part[:] for _ in range(16)]})
written = peak()
state = read_torch(path, only=["model"])
checked = read_torch(path)
print(written - before, peak() - written, *state, int(state["model"]["w"].sum()))
"""


def test_memory(tmp_path):
    """One tensor is in memory while a file is written, none of those that nobody looks at when it
    is read, checksums included."""
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "model.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    written, read, *rest = done.stdout.split()
    assert (tmp_path / "model.pt").stat().st_size > 17 * 8e6
    assert int(written) < 30 and int(read) < 70, done.stdout
    assert rest == ["model", "2097152"]


@pytest.mark.parametrize("make", [zip_file, legacy_file])
def test_only_some_keys(tmp_path, make):
    """What is not wanted is left out, even where it could not be read."""
    path = make(tmp_path / "x.pt", program(tensor(), tensor(size=(5,))), {"0": FOUR.tobytes()})
    with pytest.raises(CheckpointError, match="leaves its storage of 16 bytes"):
        read_torch(path)
    found = read_torch(path, only={"0", "absent"})
    assert list(found) == ["0"]
    np.testing.assert_array_equal(found["0"], FOUR)


def test_checksums(tmp_path):
    """One flipped bit is found, unless nobody asks for the tensor that it is in."""
    path = tmp_path / "model.pt"
    write_torch(path, {"a": FOUR, "b": FOUR + 1})
    whole = path.read_bytes()
    place = whole.index((FOUR + 1).tobytes()) + 5
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
    with pytest.raises(CheckpointError, match=r"model\.pt: archive/data/1 is damaged \(CRC"):
        read_torch(path)
    np.testing.assert_array_equal(read_torch(path, only=["a"])["a"], FOUR)
    place = whole.index(b"_rebuild_tensor_v2")
    path.write_bytes(whole[:place] + b"~" + whole[place + 1 :])
    with pytest.raises(CheckpointError, match=r"archive/data\.pkl is damaged \(CRC"):
        read_torch(path, only=["a"])


@pytest.mark.parametrize("make", [zip_file, legacy_file])
@pytest.mark.parametrize(
    ("size", "stride", "offset", "expected"),
    [
        ((4,), (1,), 0, [1, 2, 3, 4]),
        ((2,), (2,), 1, [2, 4]),
        ((2, 2), (1, 2), 0, [[1, 3], [2, 4]]),
        ((), (), 3, 4),
        ((2, 1), (3, 7), 0, [[1], [4]]),
        ((2, 2), (0, 1), 2, [[3, 4], [3, 4]]),
        ((0, 3), (3, 1), 0, np.empty((0, 3))),
        ((0,), (1,), 4, np.empty(0)),
        ((3, 2), (1, 1), 0, [[1, 2], [2, 3], [3, 4]]),
    ],
)
def test_strides_and_offsets(tmp_path, make, size, stride, offset, expected):
    opcodes = program(tensor(size, stride, offset))
    found = read_torch(make(tmp_path / "x", opcodes, {"0": FOUR.tobytes()}))["0"]
    np.testing.assert_array_equal(found, np.asarray(expected, np.float32))


def test_legacy_views_of_a_storage(tmp_path):
    """Before torch 0.4 a storage could be a part of another one."""
    view = b"(" + text("v") + b"K\x01K\x02t"
    opcodes = storage()[:-2] + view + b"tQ"
    path = legacy_file(tmp_path / "x", program(tensor((2,), where=opcodes)), {"0": FOUR.tobytes()})
    np.testing.assert_array_equal(read_torch(path)["0"], [2, 3])
    opcodes = storage()[:-2] + view.replace(b"K\x02", b"K\x04") + b"tQ"
    legacy_file(path, program(tensor((2,), where=opcodes)), {"0": FOUR.tobytes()})
    with pytest.raises(CheckpointError, match="a view that leaves its storage 0"):
        read_torch(path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "nowhere.pt")
    with pytest.raises(IsADirectoryError):
        read_torch(tmp_path)
    with pytest.raises(FileNotFoundError):
        write_torch(tmp_path / "nowhere" / "model.pt", {})
