"""Our Flax files in the real transformers 4.57 (Flax, torch), and its own in ours, bit for bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from bart_hk.checkpoint.flax import FLAX_WEIGHTS
from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.checkpoint.msgpack_file import ArrayFile
from bart_hk.checkpoint.per_head import PER_HEAD_WEIGHTS
from tests.parameters import random_params
from tests.parity.test_model_live import EXPRESSIBLE, SMALL, our_logits, random_ids

# Flax has one table for both sides, few activation functions, and pads with anything.
MODELS: dict[str, dict[str, Any]] = {
    name: {**fields, "activation_fn": "relu" if name == "relu" else "gelu"}
    for name, fields in EXPRESSIBLE.items()
    if name in ("post_norm", "mbart", "untied", "tied_output", "bias", "relu", "bfloat16")
}
MODELS["classifier"] = {}


def head_of(classes: int = 3) -> HeadFiles:
    rng = np.random.default_rng(9)
    width = SMALL.encoder_embed_dim
    dense = {"w": (width, width), "b": (width,)}
    out = {"w": (width, classes), "b": (classes,)}
    params = {
        module: {leaf: rng.standard_normal(shape, np.float32) for leaf, shape in leaves.items()}
        for module, leaves in (("dense", dense), ("out_proj", out))
    }
    return HeadFiles(params, ["bad", "fair", "good"])


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Any, Any, Any]]:
    found = {}
    for name, fields in MODELS.items():
        config = SMALL.replace(**fields)
        params = random_params(config)
        if not config.share_all_embeddings:
            params["decoder/embed_tokens"] = params["encoder/embed_tokens"]
        if name == "bfloat16":
            import ml_dtypes

            params = {
                path: {leaf: a.astype(ml_dtypes.bfloat16) for leaf, a in leaves.items()}
                for path, leaves in params.items()
            }
        found[name] = (config, params, {"mood": head_of()} if name == "classifier" else {})
    return found


@pytest.fixture(scope="module")
def folder(models, peers, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flax")
    cases = {}
    for name, (config, params, heads) in models.items():
        options = {"head": "mood"} if heads else {}
        write_model(folder / f"{name}_hf", config, params, heads, **options)
        write_model(folder / f"{name}_flax", config, params, heads, layout=FLAX_WEIGHTS, **options)
        ids = [rows.tolist() for rows in random_ids(config, [9, 4, 7], 8)]
        cases[name] = {"flax": f"{name}_flax", "hf": f"{name}_hf", "ids": ids}
    config, params, _ = models["post_norm"]
    write_model(folder / "port", config, params, layout=PER_HEAD_WEIGHTS)
    (folder / "per_head.dat").write_bytes((folder / "port" / PER_HEAD_WEIGHTS).read_bytes())
    (folder / "cases.json").write_text(json.dumps(cases))
    peers("oracle_flax.py", folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_flax_opens_what_we_write(models, folder, name):
    config, params, heads = models[name]
    theirs = load_file(folder / f"{name}.safetensors")
    file = ArrayFile(folder / f"{name}_flax" / FLAX_WEIGHTS)
    assert {f"params/{key.replace('.', '/')}" for key in file.names()} == set(theirs) - {"output"}
    for key in file.names():
        found, array = theirs[f"params/{key.replace('.', '/')}"], file.read(key)
        assert found.dtype == array.dtype and found.tobytes() == array.tobytes(), key
    if not heads:
        ids = random_ids(config, [9, 4, 7], 8)
        whole = {p: {k: np.asarray(v, np.float32) for k, v in x.items()} for p, x in params.items()}
        tolerance = 0.05 * np.abs(theirs["output"]).max() if name == "bfloat16" else 1e-4
        ours = our_logits(config, whole, ids)
        np.testing.assert_allclose(ours, theirs["output"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("form", ["plain", "sharded", "safe"])
@pytest.mark.parametrize("name", MODELS)
def test_we_open_what_flax_saves(models, folder, name, form):
    config, params, heads = models[name]
    place = folder / f"{name}_{form}"
    count = len(list(place.glob("flax_model*.msgpack")))
    assert count == {"plain": 1, "safe": 0}.get(form, count) and (form != "sharded" or count > 2)
    model = read_model(place)
    for path, leaves in params.items():
        for leaf, array in leaves.items():
            if path not in model.params and path == "output_projection":
                raise AssertionError("the output projection is lost")
            assert model.params[path][leaf].dtype == array.dtype
            assert model.params[path][leaf].tobytes() == array.tobytes(), (path, leaf)
    assert len(model.heads) == len(heads)
    for head in model.heads.values():
        assert head.labels == ["bad", "fair", "good"]
        for module, leaves in heads["mood"].params.items():
            for leaf, array in leaves.items():
                assert head.params[module][leaf].tobytes() == array.tobytes()


@pytest.mark.parametrize("name", MODELS)
def test_torch_reads_the_same_from_both(folder, name):
    straight = load_file(folder / f"{name}_torch.safetensors")
    crossed = load_file(folder / f"{name}_from_flax.safetensors")
    report = json.loads((folder / "report.json").read_text())[name]
    assert not report
    assert straight.keys() == crossed.keys()
    for key, array in straight.items():
        found = crossed[key].astype(array.dtype)  # torch reads Flax's bfloat16 as float32
        assert found.shape == array.shape and found.tobytes() == array.tobytes(), key


def test_flax_restores_the_layout_with_heads(models, folder):
    restored = load_file(folder / "per_head.safetensors")
    file = ArrayFile(folder / "per_head.dat")
    assert set(restored) == {name.replace(".", "/") for name in file.names()}
    for name in file.names():
        array = file.read(name)
        assert restored[name.replace(".", "/")].shape == array.shape
        assert restored[name.replace(".", "/")].tobytes() == array.tobytes()
    assert restored["decoder_layers/0/cross_attn/q_proj/kernel"].shape == (16, 2, 8)
