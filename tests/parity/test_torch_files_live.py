"""The real torch reads what we write, and we read what it writes."""

import json
from collections import OrderedDict

import numpy as np
import pytest
from ml_dtypes import bfloat16

from bart_hk.checkpoint.huggingface import read_model
from bart_hk.torch_format import Namespace, read_torch, write_torch
from tests.torch_format.descriptions import describe

NAMES = ["tensors", "values", "state_dict", "args", "cfg_plain", "cfg_omegaconf"]
NAMES += [f"random_{seed}" for seed in range(20)]
TABLE = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)

WRITTEN = {
    "tensors": OrderedDict(
        float32=TABLE,
        same=TABLE,
        transposed=TABLE.T,
        every_second=TABLE[:, ::2],
        scalar=np.asarray(2.5, np.float32),
        empty=np.empty((0, 3), np.float32),
        empty_within=np.empty((2, 0, 3), np.float16),
        float64=TABLE.astype(np.float64),
        float16=TABLE.astype(np.float16),
        bfloat16=TABLE.astype(bfloat16),
        int64=np.arange(-3, 3),
        int32=np.arange(3, dtype=np.int32),
        int16=np.arange(3, dtype=np.int16),
        int8=np.arange(3, dtype=np.int8),
        uint8=np.arange(3, dtype=np.uint8),
        flags=np.asarray([True, False]),
        complex64=TABLE.astype(np.complex64),
    ),
    "values": {
        "none": None,
        "numbers": [0, -1, 255, 2**31, -(2**31), -(2**31) - 1, 2**63, -(2**100), 0.1, float("inf")],
        "text": ["", "Ünï\u2028👍", "x" * 70_000],
        "tuples": ((), (1,), (1, (2, 3))),
        "flags": [True, False],
        "bytes": b"\x00\xff",
        "keys": {1: "a", "1": "b"},
        "empty": [{}, [], OrderedDict()],
    },
    "args": {
        "args": Namespace(arch="bart_base", lr=[3e-05], nested=Namespace(a=None)),
        "model": {"weight": TABLE},
    },
    "many": {str(i): np.full(1 + i % 3, i, np.float32) for i in range(3000)},
}


@pytest.fixture(scope="module")
def folder(oracle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("torch_files")
    (folder / "written").mkdir()
    for name, content in WRITTEN.items():
        write_torch(folder / "written" / f"{name}.pt", content)
    oracle("oracle_torch_files.py", folder)
    return folder


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_what_torch_saves_is_read(folder, name, container):
    expected = json.loads((folder / "saved.json").read_text())[name]
    found = describe(read_torch(folder / "saved" / f"{name}_{container}.pt"), expected)
    assert json.dumps(found) == json.dumps(expected)


@pytest.mark.parametrize("way", ["all", "mmap", "weights_only"])
@pytest.mark.parametrize("name", list(WRITTEN))
def test_what_we_write_is_loaded(folder, name, way):
    """The oracle's description of what it loaded is that of what we read from the same file."""
    loaded = json.loads((folder / "written.json").read_text())
    if (name, way) == ("args", "weights_only"):
        assert "args weights_only" not in loaded
        return
    expected = loaded[f"{name} {way}"]
    found = describe(read_torch(folder / "written" / f"{name}.pt"), expected)
    assert json.dumps(found) == json.dumps(expected)


def test_both_are_what_was_given(folder):
    """Reader and torch agree; here, that they agree on the right thing."""
    found = read_torch(folder / "written" / "tensors.pt")
    for name, array in WRITTEN["tensors"].items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    assert read_torch(folder / "written" / "values.pt") == WRITTEN["values"]
    loaded = json.loads((folder / "written.json").read_text())["tensors all"]["dict"]
    storages = {name: tensor["storage"] for name, tensor in loaded}
    assert storages["float32"] == storages["same"] != storages["transposed"]


@pytest.mark.parametrize("form", ["bin", "shards", "legacy", "half"])
def test_weights_of_transformers(folder, form):
    model = read_model(folder / "hf_safetensors")
    names = {path.name for path in (folder / f"hf_{form}").iterdir()}
    assert "model.safetensors" not in names
    assert ("pytorch_model.bin.index.json" in names) == (form == "shards")
    found = read_model(folder / f"hf_{form}")
    assert found.config == model.config
    dtype = np.float16 if form == "half" else np.float32
    assert found.params.keys() == model.params.keys()
    for path, leaves in model.params.items():
        assert found.params[path].keys() == leaves.keys()
        for name, array in leaves.items():
            ours = found.params[path][name]
            assert ours.dtype == dtype
            np.testing.assert_array_equal(ours, array.astype(dtype))
