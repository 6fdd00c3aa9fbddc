"""transformers' Flax checkpoints and those of bart-base-jax: files that Flax itself wrote, read and
written again, bit for bit."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import bart_hk
from bart_hk.checkpoint import msgpack_file
from bart_hk.checkpoint.flax import FLAX_WEIGHTS
from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.model_files import ModelFiles
from bart_hk.checkpoint.msgpack_file import ArrayFile, write_arrays
from bart_hk.checkpoint.per_head import PER_HEAD_WEIGHTS
from bart_hk.errors import CheckpointError
from bart_hk.model import BART
from bart_hk.text import TextEncoder
from tests.conftest import GOLDENS

FOLDER = GOLDENS / "flax_models"
CASES = ["bart", "sharded", "half", "trunk", "untied", "classifier", "mbart"]


@pytest.fixture(scope="module")
def cases(golden) -> dict[str, Any]:
    return golden("flax_models/cases.json")


@pytest.fixture
def models(cases, tmp_path):
    """The folder of a case, as `save_pretrained` of a Flax model leaves it."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(FOLDER / name, folder)
        (folder / "config.json").write_text(json.dumps(cases["cases"][name]["config"]))
        return folder

    return make


def flax_name(path: str, leaf: str, trunk: str) -> str:
    """Where Flax keeps a parameter of ours."""
    if path in ("embed_tokens", "encoder/embed_tokens", "decoder/embed_tokens"):
        return f"{trunk}shared/embedding"
    if path == "output_projection":
        return "lm_head/kernel"
    if path == "final_logits_bias":
        return "final_logits_bias"
    leaves = {"w": "kernel", "b": "bias", "offset": "bias", "embeddings": "embedding"}
    return f"{trunk}{re.sub('layers_', 'layers/', path)}/{leaves.get(leaf, leaf)}"


def logits(model: ModelFiles, ids: Any, previous: Any) -> np.ndarray:
    bart = BART(model.config)
    params = jax.tree.map(lambda a: np.asarray(a, np.float32), model.params)

    @jax.jit
    def run(params):
        source = bart.encode(params, np.array(ids))
        return bart.project(params, bart.decode(params, np.array(previous), source).features)

    return np.asarray(run(params))


@pytest.mark.parametrize("name", CASES)
def test_what_flax_wrote(cases, golden, models, name):
    about, recorded = cases["cases"][name], golden(f"flax_models/{name}.safetensors")
    model = read_model(models(name))
    trunk = "" if about["kind"] == "BartModel" else "model/"
    used = set()
    for path, leaves in model.params.items():
        for leaf, array in leaves.items():
            where = flax_name(path, leaf, trunk)
            used.add(where)
            assert array.dtype.name == about["dtype"]
            expected = recorded[where].reshape(array.shape)
            assert np.asarray(array, np.float32).tobytes() == expected.tobytes(), where
    for name_of_head, head in model.heads.items():
        assert name_of_head == "classification_head" and head.labels == ["bad", "fair", "good"]
        for module in ("dense", "out_proj"):
            for leaf, theirs in (("w", "kernel"), ("b", "bias")):
                where = f"classification_head/{module}/{theirs}"
                used.add(where)
                assert head.params[module][leaf].tobytes() == recorded[where].tobytes()
    assert bool(model.heads) == (name == "classifier")
    assert used == set(recorded) - {"output"}
    output = recorded["output"]
    if name not in ("classifier", "trunk"):
        found = logits(model, cases["ids"], cases["prev_output_tokens"])
        tolerance = 0.05 * np.abs(output).max() if name == "half" else 1e-4
        np.testing.assert_allclose(found, output, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_written_again_it_is_flaxs(models, tmp_path, assert_equal, name):
    """The same arrays under the same names, in the same bytes but for the order of names."""
    folder, out = models(name), tmp_path / "out"
    model = read_model(folder)
    head = next(iter(model.heads), None)
    write_model(out, model.config, model.params, model.heads, head=head, layout=FLAX_WEIGHTS)
    files = [ArrayFile(path) for path in sorted(folder.glob("*.msgpack"))]
    theirs = {array: file.read(array) for file in files for array in file.names()}
    if name == "trunk":
        theirs = {f"model.{key}": value for key, value in theirs.items()}
        theirs["final_logits_bias"] = np.zeros((1, model.config.vocab_size), np.float32)
    ours = ArrayFile(out / FLAX_WEIGHTS)
    assert set(ours.names()) == set(theirs)
    for key, array in theirs.items():
        found = ours.read(key)
        assert (found.dtype, found.shape) == (array.dtype, array.shape), key
        assert found.tobytes() == array.tobytes(), key
    if name not in ("trunk", "sharded"):
        assert (out / FLAX_WEIGHTS).stat().st_size == (folder / FLAX_WEIGHTS).stat().st_size
    again = read_model(out)
    assert again.config == model.config
    assert_equal(again.params, model.params)


def test_the_bytes_of_flax(tmp_path):
    """From Flax's own order of names comes Flax's own file."""
    source = FOLDER / "bart" / FLAX_WEIGHTS
    file, tree = ArrayFile(source), {}
    for name in file.names():
        *modules, leaf = name.split(".")
        inner = tree
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[leaf] = lambda name=name: file.read(name)
    write_arrays(tmp_path / "x", tree)
    assert (tmp_path / "x").read_bytes() == source.read_bytes()


def test_shards_are_written(models, tmp_path, assert_equal):
    model, out = read_model(models("bart")), tmp_path / "out"
    parts = (model.config, model.params)
    write_model(out, *parts, layout=FLAX_WEIGHTS, max_shard_size=8000)
    names = sorted(path.name for path in out.glob("flax_model-*"))
    assert len(names) > 2 and names[0] == f"flax_model-00001-of-{len(names):05}.msgpack"
    theirs = json.loads((FOLDER / "sharded" / "flax_model.msgpack.index.json").read_text())
    ours = json.loads((out / "flax_model.msgpack.index.json").read_text())
    assert ours["weight_map"].keys() == theirs["weight_map"].keys()
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]
    assert_equal(read_model(out).params, model.params)


def test_flaxs_names_in_a_safetensors_file(models, tmp_path, assert_equal):
    """What `save_pretrained(safe_serialization=True)` of a Flax model writes."""
    folder = models("bart")
    model, file = read_model(folder), ArrayFile(folder / FLAX_WEIGHTS)
    arrays = {name: file.read(name) for name in file.names()}
    save_file(arrays, folder / "model.safetensors", {"format": "flax"})
    (folder / FLAX_WEIGHTS).unlink()
    assert_equal(read_model(folder).params, model.params)


def test_arrays_beyond_a_chunk(tmp_path, monkeypatch):
    """Flax cuts what has more than 2^30 bytes; here more than 100."""
    arrays = {"a": np.arange(60, dtype=np.float32).reshape(12, 5), "b": np.ones(3, np.float16)}
    arrays["c"] = np.arange(90).astype(ml_dtypes.bfloat16)
    monkeypatch.setattr(msgpack_file, "MAX_CHUNK", 100)
    write_arrays(tmp_path / "x", {"in": {k: lambda v=v: v for k, v in arrays.items()}})
    assert (tmp_path / "x").read_bytes().count(b"__msgpack_chunked_array__") == 2
    file = ArrayFile(tmp_path / "x")
    assert file.names() == ["in.a", "in.b", "in.c"]
    for name, array in arrays.items():
        found = file.read(f"in.{name}")
        assert found.dtype == array.dtype and found.tobytes() == array.tobytes()
        assert found.shape == file.shape(f"in.{name}") == array.shape


def test_what_flaxs_models_cannot_express(models, random_params, tmp_path):
    model = read_model(models("untied"))
    out, config = tmp_path / "out", model.config

    def refused(message, config=config, **options):
        parts = (config, model.params)
        with pytest.raises(ValueError, match=message) as caught:
            write_model(out, *parts, layout=options.pop("layout", FLAX_WEIGHTS), **options)
        assert "\n" not in str(caught.value) and not out.exists()

    refused("no Flax BART with activation_fn=mish", config.replace(activation_fn="mish"))
    refused("no Flax PLBart", extras={"model_type": "plbart"})
    refused("no BART with no_scale_embedding=False", config.replace(no_scale_embedding=False),
            layout=PER_HEAD_WEIGHTS)  # fmt: skip
    with pytest.raises(ValueError, match="no BART with activation_fn=prelu; write it with --to na"):
        with_parameters = config.replace(activation_fn="prelu", final_logits_bias=False)
        params = random_params(with_parameters)
        write_model(out, with_parameters, params, layout=PER_HEAD_WEIGHTS)
    model.params["decoder/embed_tokens"] = {
        "embeddings": model.params["decoder/embed_tokens"]["embeddings"] + 1
    }
    refused("have one embedding table for source and target; those of this model differ")


def test_weights_that_a_reader_would_prefer(models):
    folder = models("bart")
    model = read_model(folder)
    with pytest.raises(FileExistsError, match="has a flax_model.msgpack already; name another"):
        write_model(folder, model.config, model.params, layout=PER_HEAD_WEIGHTS)
    write_model(folder, model.config, model.params)  # which is preferred to the other
    assert (folder / "model.safetensors").exists()


# --- bart-base-jax --------------------------------------------------------------------------------


@pytest.fixture
def per_head(tmp_path) -> Path:
    return Path(shutil.copy(FOLDER / "per_head" / PER_HEAD_WEIGHTS, tmp_path / "params_en.dat"))


def without_bias(model: ModelFiles) -> ModelFiles:
    """The port leaves out the bias of the logits."""
    del model.params["final_logits_bias"]
    return ModelFiles(model.config.replace(final_logits_bias=False), model.params)


def tree_of(path: Path) -> dict[str, np.ndarray]:
    file = ArrayFile(path)
    return {name: file.read(name) for name in file.names()}


def write_tree(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Layers become lists, as in the port."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *modules, leaf = name.split(".")
        inner = tree
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[leaf] = lambda array=array: array
    lists = {k: list(v.values()) if k.endswith("_layers") else v for k, v in tree.items()}
    write_arrays(path, lists)


def test_the_layout_with_heads(models, per_head, assert_equal):
    """Without any config: the sizes follow from the shapes, the rest is bart-base's."""
    expected, found = without_bias(read_model(models("bart"))), read_model(per_head)
    sizes = [
        name for name in vars(found.config) if re.search("embed_dim|layers$|heads|vocab", name)
    ]
    for name in (*sizes, "max_source_positions", "max_target_positions"):
        assert getattr(found.config, name) == getattr(expected.config, name)
    assert found.config.share_all_embeddings and found.config.activation_fn == "gelu"
    assert_equal(found.params, expected.params)


def test_its_documentations_layout(per_head, tmp_path, assert_equal):
    """[H, D, K] and [D, D], where the code has [D, H, K] and [H, K, D]."""
    arrays = tree_of(per_head)
    for name, array in arrays.items():
        if name.endswith("_proj.kernel"):
            arrays[name] = array.swapaxes(0, 1)
        elif name.endswith("ff.kernel"):
            arrays[name] = array.reshape(-1, array.shape[-1])
    write_tree(tmp_path / "text.dat", arrays)
    assert_equal(read_model(tmp_path / "text.dat").params, read_model(per_head).params)


def test_positions_without_the_unused_rows(per_head, tmp_path):
    """A table of bart-base's 1024 positions alone gets Hugging Face's two rows back."""
    arrays = tree_of(per_head)
    rows = np.random.default_rng(0).standard_normal((1024, 16), np.float32)
    arrays["encoder_embed_positions"] = rows
    write_tree(tmp_path / "stripped.dat", arrays)
    model = read_model(tmp_path / "stripped.dat")
    table = model.params["encoder/embed_positions"]["embeddings"]
    assert model.config.max_source_positions == 1024 and table.shape == (1026, 16)
    np.testing.assert_array_equal(table, np.concatenate([np.zeros((2, 16), np.float32), rows]))


def test_two_languages(per_head, tmp_path, assert_equal):
    """Tables of their own for source and target, and an output projection, as in TransCan."""
    arrays = tree_of(per_head)
    table = arrays.pop("embedding.embedding")
    arrays["encoder_embedding.embedding"] = table
    arrays["decoder_embedding.embedding"] = table + 1
    arrays["lm_head"] = (table + 2).T
    write_tree(tmp_path / "two.dat", arrays)
    model = read_model(tmp_path / "two.dat")
    for path, change in (("encoder/embed_tokens", 0), ("decoder/embed_tokens", 1)):
        np.testing.assert_array_equal(model.params[path]["embeddings"], table + change)
    np.testing.assert_array_equal(model.params["output_projection"]["w"], (table + 2).T)
    write_model(tmp_path / "out", model.config, model.params, layout=PER_HEAD_WEIGHTS)
    again = tree_of(tmp_path / "out" / PER_HEAD_WEIGHTS)
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert again[name].shape == array.shape and again[name].tobytes() == array.tobytes(), name
    assert_equal(read_model(tmp_path / "out").params, model.params)


def test_the_ports_own_arithmetic(models, tmp_path):
    """An attention as its documentation computes it, from what we write."""
    model = without_bias(read_model(models("bart")))
    write_model(tmp_path / "out", model.config, model.params, layout=PER_HEAD_WEIGHTS)
    arrays = tree_of(tmp_path / "out" / PER_HEAD_WEIGHTS)
    theirs = tree_of(FOLDER / "per_head" / PER_HEAD_WEIGHTS)
    assert arrays.keys() == theirs.keys()
    for name, array in theirs.items():
        assert arrays[name].shape == array.shape and arrays[name].tobytes() == array.tobytes()
    assert arrays["encoder_layers.0.self_attn.q_proj.kernel"].shape == (16, 4, 4)
    x = np.random.default_rng(1).standard_normal((2, 5, 16), np.float32)
    split = np.einsum("bdm,mhk->bhdk", x, arrays["encoder_layers.0.self_attn.q_proj.kernel"])
    flat = x @ model.params["encoder/layers_0/self_attn/q_proj"]["w"]
    np.testing.assert_allclose(split.swapaxes(1, 2).reshape(2, 5, 16), flat, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", [FLAX_WEIGHTS, PER_HEAD_WEIGHTS])
def test_one_stack_alone_is_no_model_there(small, random_params, tmp_path, layout):
    config = small(flavour="decoder_only")
    with pytest.raises(ValueError, match="flavour=decoder_only"):
        write_model(tmp_path / "out", config, random_params(config), layout=layout)


def test_heads_of_a_width_of_their_own(small, random_params, tmp_path, assert_equal):
    config = small(attention_head_dim=7)
    params = random_params(config)
    write_model(tmp_path / "out", config, params, layout=PER_HEAD_WEIGHTS)
    kernel = tree_of(tmp_path / "out" / PER_HEAD_WEIGHTS)["decoder_layers.0.cross_attn.ff.kernel"]
    assert kernel.shape == (2, 7, 16)
    assert_equal(read_model(tmp_path / "out").params, params)
    shutil.copy(tmp_path / "out" / PER_HEAD_WEIGHTS, tmp_path / "bare.dat")
    bare = read_model(tmp_path / "bare.dat")
    assert bare.config.attention_head_dim == 7
    assert_equal(bare.params, params)


def test_loading_a_single_file(per_head, tmp_path):
    text = TextEncoder.gpt2()
    tables = tree_of(per_head)
    rows = len(text.dictionary)
    tables["embedding.embedding"] = np.zeros((rows, 16), np.float32)
    write_tree(tmp_path / "all.dat", tables)
    with pytest.raises(FileNotFoundError, match="no tokenizer files in"):
        bart_hk.load(tmp_path / "all.dat")
    text.save(tmp_path / "tokenizer")
    bart = bart_hk.load(tmp_path / "all.dat", data_name_or_path=tmp_path / "tokenizer")
    assert bart.decode(bart.encode("Hello world!")) == "Hello world!"
    tanh = bart_hk.load(
        tmp_path / "all.dat", data_name_or_path=tmp_path / "tokenizer", activation_fn="gelu_new"
    )
    assert tanh.config.activation_fn == "gelu_new"
    # Flax's own file says nothing of heads or ids.
    shutil.copy(FOLDER / "bart" / FLAX_WEIGHTS, tmp_path)
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        bart_hk.load(tmp_path / FLAX_WEIGHTS)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        ("embedding.embedding", "it has no table embedding.embedding or decoder_embedding"),
        ("encoder_layers.0.self_attn.q_proj.bias", "it lacks 'encoder.layers.0.self_attn.q_proj"),
        ("decoder_layers.0.ff1.bias", r"lack the tensor decoder.layers.0.fc2.bias"),
    ],
)
def test_a_layout_that_lacks_something(per_head, tmp_path, without, message):
    arrays = tree_of(per_head)
    del arrays[without]
    write_tree(tmp_path / "x.dat", arrays)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_model(tmp_path / "x.dat")
    assert "\n" not in str(caught.value)


def test_a_layout_with_heads_that_do_not_fit(per_head, tmp_path):
    arrays = tree_of(per_head)
    name = "encoder_layers.1.self_attn.k_proj.kernel"
    arrays[name] = arrays[name][:, :3]
    write_tree(tmp_path / "x.dat", arrays)
    with pytest.raises(CheckpointError, match=r"has shape \(12, 16\); the config asks for"):
        read_model(tmp_path / "x.dat")
