"""Checkpoints in shards, laid out as fairscale's FullyShardedDataParallel lays them out."""

import math
import re

import numpy as np
import pytest

import bart_hk
from bart_hk.checkpoint.fairseq import to_fairseq
from bart_hk.checkpoint.fairseq_file import checkpoint_paths, read_fairseq, write_fairseq
from bart_hk.config import BARTConfig
from bart_hk.errors import CheckpointError
from bart_hk.text import TextEncoder, train_bpe
from bart_hk.torch_format import Namespace, read_torch, write_torch
from tests.parameters import random_params

RANKS = 3
TIED = "encoder.embed_tokens.weight"
COPIES = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    return train_bpe(["the cat sat on the mat, the hat"] * 3, 280)


@pytest.fixture(scope="module")
def config(text) -> BARTConfig:
    return BARTConfig(
        vocab_size=len(text.dictionary),
        encoder_embed_dim=16,
        encoder_ffn_embed_dim=24,
        encoder_layers=2,
        encoder_attention_heads=4,
        decoder_ffn_embed_dim=20,
        decoder_layers=1,
        decoder_attention_heads=2,
        max_source_positions=14,
        max_target_positions=14,
    )


@pytest.fixture(scope="module")
def params(config):
    return random_params(config)


def flatten(state: dict[str, np.ndarray], path: str) -> tuple[list[np.ndarray], dict, dict]:
    """What each process has of the tensors under a path, with padding for all but the first ones;
    and the two halves of what is said about them."""
    names = [n.removeprefix(path) for n in state if n.startswith(path)]
    tensors = [state[path + name] for name in names]
    whole = np.concatenate([tensor.ravel() for tensor in tensors])
    size = math.ceil(len(whole) / RANKS)
    parts = [whole[i * size : (i + 1) * size] for i in range(RANKS)]
    paddings = [size - len(part) for part in parts]
    about = {
        "names": names,
        "shapes": [tensor.shape for tensor in tensors],
        "numels": [tensor.size for tensor in tensors],
    }
    padded = [np.pad(part, (0, p)) for part, p in zip(parts, paddings, strict=True)]
    return padded, about, dict(enumerate(paddings))


def shards(config: BARTConfig, params) -> list[dict]:
    """The root's parameters and, wrapped on their own, those of the encoder's layers."""
    state = {n: np.ascontiguousarray(t) for n, t in to_fairseq(params, config).items()}
    buffers = {name: state.pop(name) for name in ("encoder.version", "decoder.version")}
    for name in COPIES:
        del state[name]
    wrapped = ["encoder.layers.0", "encoder.layers.1"]
    own = {p: {n: t for n, t in state.items() if n.startswith(f"{p}.")} for p in wrapped}
    root = {n: t for n, t in state.items() if not any(n in each for each in own.values())}
    contents = [
        {
            "args": Namespace(arch="bart_base", encoder_attention_heads=4)
            | {"decoder_attention_heads": 2},
            "model": dict(buffers),
            "fsdp_metadata": {"param_metadata": [], "buffer_names": list(buffers)},
            "last_optimizer_state": {"state": [np.ones(5)]},
        }
        for _ in range(RANKS)
    ]
    for path, tensors in (("", root), *own.items()):
        prefix = f"{path}." if path else ""
        parts, about, paddings = flatten(tensors, prefix)
        for rank, content in enumerate(contents):
            content["model"][f"{prefix}flat_param_0"] = parts[rank]
            content["fsdp_metadata"]["param_metadata"].append(
                {
                    "fsdp_path": path,
                    "params": {"flat_param_0": {**about, "padding": paddings[rank]}},
                    "no_broadcast_optim_state": False,
                    "shared_param_info": [] if path else [(TIED, name) for name in COPIES],
                }
            )
    return contents


def write(folder, contents, stem="checkpoint_last"):
    folder.mkdir(exist_ok=True)
    for rank, content in enumerate(contents):
        write_torch(folder / f"{stem}-shard{rank}.pt", content)
    return folder


@pytest.fixture
def written(config, params):
    return lambda folder, **options: write(folder, shards(config, params), **options)


@pytest.mark.parametrize("asked", ["checkpoint_last.pt", "checkpoint_last-shard1.pt"])
def test_shards_are_joined(tmp_path, written, config, params, assert_equal, asked):
    written(tmp_path)
    content = read_torch(tmp_path / "checkpoint_last-shard2.pt")
    about = content["fsdp_metadata"]["param_metadata"]
    assert any(module["params"]["flat_param_0"]["padding"] for module in about)
    model = read_fairseq(tmp_path / asked)
    assert model.config == config
    assert_equal(model.params, params)


def test_a_user_loads_them(tmp_path, written, config, params, text):
    write_fairseq(tmp_path, config, params, text=text)
    expected = bart_hk.load(tmp_path)
    (tmp_path / "model.pt").unlink()
    written(tmp_path, stem="model")
    tokens = expected.encode("the cat sat")
    for found in (
        bart_hk.load(tmp_path),
        bart_hk.load(tmp_path, checkpoint_file="model.pt"),
        bart_hk.load(tmp_path / "model-shard0.pt"),
    ):
        np.testing.assert_array_equal(found.encode("the cat sat"), tokens)
        np.testing.assert_array_equal(
            found.extract_features(tokens), expected.extract_features(tokens)
        )
    assert checkpoint_paths(tmp_path, "model.pt") == [tmp_path / "model.pt"]


def test_a_shard_that_is_missing(tmp_path, written):
    written(tmp_path)
    (tmp_path / "checkpoint_last-shard2.pt").unlink()
    with pytest.raises(CheckpointError, match=r"its shards hold \d+ of the \d+ numbers of"):
        read_fairseq(tmp_path / "checkpoint_last.pt")
    (tmp_path / "checkpoint_last-shard0.pt").unlink()
    with pytest.raises(CheckpointError, match=r"lacks checkpoint_last-shard0\.pt, one of the 1 or"):
        read_fairseq(tmp_path / "checkpoint_last-shard1.pt")


def test_a_whole_checkpoint_beside_shards_wins(tmp_path, written, config, assert_equal):
    written(tmp_path, stem="model")
    other = random_params(config, seed=9)
    write_fairseq(tmp_path, config, other)
    assert_equal(read_fairseq(tmp_path / "model.pt").params, other)


def modules_of(content):
    return content["fsdp_metadata"]["param_metadata"]


def flat_of(content):
    return modules_of(content)[0]["params"]["flat_param_0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("fsdp_metadata"), "does not say how shards are joined (fsdp_metadata)"),
        (lambda c: c.update(fsdp_metadata=[]), "its fsdp_metadata is"),
        (lambda c: c["fsdp_metadata"].update(param_metadata=7), "its param_metadata is"),
        (lambda c: modules_of(c).__setitem__(1, modules_of(c)[0]), "describes flat_param_0 twice"),
        (lambda c: modules_of(c).pop(), "describe models of different structure"),
        (lambda c: modules_of(c).__setitem__(0, 5), "which is no dictionary"),
        (lambda c: modules_of(c)[0].update(params=None), "which is no dictionary"),
        (lambda c: c["model"].pop("flat_param_0"), "one of its shards lacks flat_param_0"),
        (lambda c: c["model"].update(flat_param_0="x"), "one of its shards lacks flat_param_0"),
        (lambda c: flat_of(c).update(padding="x"), "one of its shards lacks flat_param_0"),
        (lambda c: flat_of(c).update(padding=1 << 40), "of them padding"),
        (lambda c: flat_of(c).update(padding=-1), "of them padding"),
        (lambda c: flat_of(c).update(names=["x"]), "put all shards of the checkpoint there"),
        (lambda c: flat_of(c).update(shapes=[(1 << 62, 4)]), "put all shards of the checkpoint"),
        (lambda c: flat_of(c).update(shapes=[(-1, 4)]), "a tensor of an impossible shape"),
        (lambda c: flat_of(c).update(shapes=["no"]), "which is no list"),
        (lambda c: modules_of(c)[0].update(shared_param_info=[("nothing", "x")]), "it lacks"),
        (lambda c: modules_of(c)[0].update(shared_param_info=[3]), "which is no list"),
    ],
)
def test_shards_that_are_damaged(tmp_path, config, params, change, message):
    contents = shards(config, params)
    change(contents[0])
    write(tmp_path, contents)
    with pytest.raises(CheckpointError, match=re.escape(message)) as error:
        read_fairseq(tmp_path / "checkpoint_last.pt")
    assert "\n" not in str(error.value)


def test_parts_of_another_kind_are_named(tmp_path):
    write_torch(tmp_path / "model_part-0.pt", {"model": {}})
    with pytest.raises(CheckpointError, match="split over devices"):
        read_fairseq(tmp_path / "model_part-0.pt")
