"""`pytorch_model.bin` and shards: the same tensors from every file that Hugging Face ever wrote."""

import json

import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file, save_file

from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.weights import Weights
from bart_hk.errors import CheckpointError
from bart_hk.torch_format import write_torch
from tests.torch_format.torch_bytes import legacy_file, program, storage, tensor

FOUR = np.arange(1, 5, dtype=np.float32)


@pytest.fixture
def directory(tmp_path, small, random_params):
    """A model's directory, its parameters, and the tensors of its model.safetensors."""
    params = random_params(small())
    write_model(tmp_path / "model", small(), params)
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    return tmp_path / "model", params, tensors


def _halves(tensors):
    names = sorted(tensors)
    return [{n: tensors[n] for n in names[i::2]} for i in (0, 1)]


def _with_index(directory, write, name, tensors):
    places = {}
    for number, part in enumerate(_halves(tensors), 1):
        shard = name.replace(".", f"-0000{number}-of-00002.")
        write(part, directory / shard)
        places |= dict.fromkeys(part, shard)
    (directory / f"{name}.index.json").write_text(json.dumps({"weight_map": places}))


def _torch(tensors, path):
    write_torch(path, tensors)


LAYOUTS = {
    "safetensors": lambda d, t: save_file(t, d / "model.safetensors"),
    "safetensors shards": lambda d, t: _with_index(d, save_file, "model.safetensors", t),
    "torch": lambda d, t: _torch(t, d / "pytorch_model.bin"),
    "torch shards": lambda d, t: _with_index(d, _torch, "pytorch_model.bin", t),
    "without prefix": lambda d, t: _torch(
        {name.removeprefix("model."): a for name, a in t.items()}, d / "pytorch_model.bin"
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_model(directory, assert_equal, layout):
    path, params, tensors = directory
    LAYOUTS[layout](path, tensors)
    assert_equal(read_model(path).params, params)


def test_in_another_dtype(directory):
    path, params, tensors = directory
    LAYOUTS["torch"](path, tensors)
    found = read_model(path, "bfloat16").params
    table = found["embed_tokens"]["embeddings"]
    assert table.dtype == bfloat16
    np.testing.assert_array_equal(table, params["embed_tokens"]["embeddings"].astype(bfloat16))


def test_safetensors_come_first(directory, assert_equal):
    path, params, tensors = directory
    LAYOUTS["safetensors"](path, tensors)
    (path / "pytorch_model.bin").write_bytes(b"something else")
    assert_equal(read_model(path).params, params)


def test_the_legacy_container(tmp_path):
    where = storage(length=4)
    opcodes = program(tensor((2, 2), (1, 2), where=where), tensor(where=where))
    legacy_file(tmp_path / "pytorch_model.bin", opcodes, {"0": FOUR.tobytes()})
    weights = Weights(tmp_path)
    assert weights.names() == {"0", "1"} and weights.shape("0") == (2, 2)
    np.testing.assert_array_equal(weights.read("0", (2, 2)), [[1, 3], [2, 4]])
    np.testing.assert_array_equal(weights.read("1", (4,)), FOUR)
    with pytest.raises(ValueError, match=r"bin: 0 has shape \(2, 2\); the config asks for \(4,\)"):
        weights.read("0", (4,))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([FOUR], "holds a list, not named tensors"),
        ({"state_dict": {"a": FOUR}}, "holds more than named tensors: state_dict is a dict"),
        ({1: FOUR}, "more than named tensors: 1 is a ndarray"),
        ({"a": FOUR, "epoch": 3}, "epoch is 3"),
    ],
)
def test_what_is_no_state_dict(tmp_path, content, message):
    write_torch(tmp_path / "pytorch_model.bin", content)
    with pytest.raises(CheckpointError, match=message) as caught:
        Weights(tmp_path)
    assert "pytorch_model.bin" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "content",
    [
        {},
        {"weight_map": {}},
        {"weight_map": ["model.safetensors"]},
        {"weight_map": {"a": 1}},
        {"weight_map": {"a": "../model.safetensors"}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": ".."}},
        {"weight_map": {"a": "secret.txt"}},
    ],
)
def test_an_index_that_leads_elsewhere(tmp_path, name, content):
    (tmp_path / f"{name}.index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"index\.json does not say in which files"):
        Weights(tmp_path)


def test_a_shard_that_is_missing(directory):
    path, _, tensors = directory
    LAYOUTS["torch shards"](path, tensors)
    (path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no pytorch_model-00002-of-00002\.bin"):
        read_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not valid JSON"),
        (b" " * ((16 << 20) + 1), "more than 16777216 bytes"),
    ],
)
def test_json_that_is_no_config(directory, content, message):
    path, _, _ = directory
    (path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_model(path)
    assert "\n" not in str(caught.value) and "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_layers": 10**9}, "says encoder_layers=1000000000 .*; there are 66 tensors"),
        ({"d_model": "16"}, "d_model is '16', which is no int"),
        ({"forced_eos_token_id": {}}, "config.json"),
        ({"id2label": 3, "architectures": None}, None),
    ],
)
def test_a_config_that_lies(directory, change, message):
    path, _, tensors = directory
    LAYOUTS["safetensors"](path, tensors)
    content = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**content, **change}))
    (path / "generation_config.json").unlink()
    if message is None:
        read_model(path)
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        read_model(path)
    assert "\n" not in str(caught.value)


def test_shards_are_written_as_transformers_does(tmp_path, small, random_params, assert_equal):
    config, limit = small(), 10_000
    params = random_params(config)
    write_model(tmp_path / "one", config, params)
    write_model(tmp_path / "many", config, params, max_shard_size=limit)
    whole = load_file(tmp_path / "one" / "model.safetensors")
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    found = {}
    for shard in sorted(set(index["weight_map"].values())):
        part = load_file(tmp_path / "many" / shard)
        assert sum(a.nbytes for a in part.values()) <= limit or len(part) == 1
        assert all(index["weight_map"][name] == shard for name in part)
        found |= part
    assert found.keys() == whole.keys() == index["weight_map"].keys()
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array)
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in whole.values())
    number = len(set(index["weight_map"].values()))
    assert number > 2
    assert f"model-00001-of-{number:05d}.safetensors" in index["weight_map"].values()
    assert_equal(read_model(tmp_path / "many").params, params)


def test_what_fits_into_one_file_is_one(tmp_path, small, random_params):
    write_model(tmp_path / "model", small(), random_params(small()), max_shard_size=10**9)
    assert not list((tmp_path / "model").glob("*.index.json"))
    assert (tmp_path / "model" / "model.safetensors").exists()
    with pytest.raises(ValueError, match=r"holds a model\.safetensors; write shards into another"):
        write_model(tmp_path / "model", small(), random_params(small()), max_shard_size=10**9)
