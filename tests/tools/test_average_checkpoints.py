"""The mean of checkpoints, of either kind."""

import importlib.util
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bart_hk.checkpoint.fairseq_file import read_fairseq
from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.config import BARTConfig
from bart_hk.text import TextEncoder, train_bpe
from bart_hk.torch_format import Namespace, read_torch, write_torch
from tests.conftest import GOLDENS
from tests.parameters import random_params

TOOL = Path(__file__).parents[2] / "tools" / "average_checkpoints.py"
TRAINED = GOLDENS / "checkpoints" / "trained.pt"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("average_checkpoints", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def moved(path, number, dtype=np.float32):
    """The golden checkpoint with other parameters, its tied tables still one."""
    content = read_torch(TRAINED)
    rng, seen, state = np.random.default_rng(number), {}, {}
    for name, tensor in content["model"].items():
        where = tensor.ctypes.data
        if where not in seen:
            seen[where] = (tensor + 0.1 * rng.standard_normal(tensor.shape)).astype(dtype)
        state[name] = seen[where]
    write_torch(path, {**content, "model": state})
    return state


def test_the_mean_of_fairseqs_checkpoints(tmp_path, tool, capsys):
    states = [moved(tmp_path / f"{n}.pt", n) for n in range(3)]
    inputs = [str(tmp_path / f"{n}.pt") for n in range(3)]
    assert tool.main(["--inputs", *inputs, "--output", str(tmp_path / "out.pt")]) == 0
    assert "out.pt" in capsys.readouterr().out
    averaged, first = read_torch(tmp_path / "out.pt"), read_torch(tmp_path / "0.pt")
    assert averaged["model"].keys() == states[0].keys()
    for name, tensor in averaged["model"].items():
        # In fairseq's order, so that not a bit differs.
        expected = (states[0][name] + states[1][name] + states[2][name]) / np.float32(3)
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, expected, err_msg=name)
    assert isinstance(averaged["cfg"]["model"], Namespace)
    assert averaged["cfg"] == first["cfg"] and averaged["last_optimizer_state"] is None
    tied = [f"{n}.weight" for n in ("encoder.embed_tokens", "decoder.output_projection")]
    addresses = {averaged["model"][name].ctypes.data for name in tied}
    assert len(addresses) == 1
    model = read_fairseq(tmp_path / "out.pt")
    assert model.config == read_fairseq(TRAINED).config


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_are_added_up_in_float32(tmp_path, tool, dtype):
    states = [moved(tmp_path / f"{n}.pt", n, dtype) for n in range(2)]
    tool.average_files([tmp_path / "0.pt", tmp_path / "1.pt"], tmp_path / "out.pt")
    for name, tensor in read_torch(tmp_path / "out.pt")["model"].items():
        assert tensor.dtype == np.float32
        expected = (states[0][name].astype(np.float32) + states[1][name].astype(np.float32)) / 2
        np.testing.assert_array_equal(tensor, expected)


def test_other_numbers(tool):
    np.testing.assert_array_equal(tool.mean([np.array([3, -3]), np.array([4, -4])]), [3, -4])
    assert tool.mean([np.array([3]), np.array([4])]).dtype == np.int64
    assert tool.mean([np.ones(1), np.ones(1)]).dtype == np.float64


def test_the_mean_of_folders(tmp_path, tool):
    text = train_bpe(["the cat sat on the mat, the hat"] * 3, 280)
    config = BARTConfig(
        vocab_size=len(text.dictionary),
        encoder_embed_dim=16,
        encoder_ffn_embed_dim=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        decoder_ffn_embed_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        max_source_positions=14,
        max_target_positions=14,
    )
    every = []
    for n in range(2):
        rng = np.random.default_rng(n)
        head = {
            part: {
                "w": rng.standard_normal(shape, np.float32),
                "b": rng.standard_normal(shape[1], np.float32),
            }
            for part, shape in (("dense", (16, 8)), ("out_proj", (8, 2)))
        }
        params = random_params(config, seed=n)
        every.append((params, head))
        extras = {"note": n}
        heads = {"mood": HeadFiles(head, ["bad", "good"])}
        write_model(tmp_path / str(n), config, params, heads, extras, also=text.save)
    folders = [str(tmp_path / "0"), str(tmp_path / "1")]
    assert tool.main(["--inputs", *folders, "--output", str(tmp_path / "out")]) == 0
    model = read_model(tmp_path / "out")
    assert model.config == config and model.extras == {"note": 0}
    assert model.heads["mood"].labels == ["bad", "good"]
    for path, leaves in model.params.items():
        for name, array in leaves.items():
            expected = (every[0][0][path][name] + every[1][0][path][name]) / 2
            np.testing.assert_array_equal(array, expected)
    ours = model.heads["mood"].params["out_proj"]["w"]
    np.testing.assert_array_equal(ours, sum(e[1]["out_proj"]["w"] for e in every) / 2)
    assert TextEncoder.load(tmp_path / "out").dictionary == text.dictionary
    other = config.replace(encoder_attention_heads=4)
    write_model(tmp_path / "other", other, random_params(other))
    with pytest.raises(ValueError, match="other holds a model of another structure"):
        tool.average_folders([tmp_path / "0", tmp_path / "other"], tmp_path / "out")


def test_which_checkpoints(tmp_path, tool):
    names = [f"checkpoint{n}.pt" for n in (1, 2, 9, 10)]
    names += [f"checkpoint_{n // 3}_{n}.pt" for n in (5, 50, 500)]
    names += [f"checkpoint.best_loss_{x}.pt" for x in ("2.31", "10.5", "3")]
    for name in [*names, "checkpoint_last.pt", "dict.txt"]:
        (tmp_path / name).touch()

    def chosen(*options, inputs=(tmp_path,)):
        parsed = []
        tool.average_files = lambda inputs, output: parsed.extend(p.name for p in inputs)
        tool.main(["--output", "x", *options, "--inputs", *map(str, inputs)])
        return parsed

    kept = tool.average_files
    try:
        assert chosen("--num-epoch-checkpoints=3") == [names[3], names[2], names[1]]
        assert chosen("--num-epoch-checkpoints=2", "--checkpoint-upper-bound=9") == names[2:0:-1]
        assert chosen("--num-update-checkpoints=2") == [names[6], names[5]]
        best = [tmp_path / name for name in names[7:]]
        assert chosen("--num-best-checkpoints=2", inputs=best) == [names[7], names[9]]
    finally:
        tool.average_files = kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-epoch-checkpoints=2"], "holds 1 such checkpoints, fewer than 2"),
        (["--checkpoint-upper-bound=2"], "--checkpoint-upper-bound needs --num-epoch-checkpoints"),
        (["--num-best-checkpoints=1"], "does not end in a score"),
        ([], "No such file|no such file|not found|cannot"),
    ],
)
def test_mistakes_are_one_line(tmp_path, tool, capsys, options, message):
    (tmp_path / "checkpoint1.pt").touch()
    inputs = [str(tmp_path)] if options else [str(tmp_path / "a.pt"), str(tmp_path / "b.pt")]
    with pytest.raises(SystemExit) as caught:
        tool.main(["--inputs", *inputs, "--output", str(tmp_path / "out"), *options])
    said = capsys.readouterr().err
    assert caught.value.code == 1 and said.count("\n") == 1 and re.search(message, said)


def test_checkpoints_that_do_not_belong_together(tmp_path, tool):
    state = moved(tmp_path / "a.pt", 0)
    less = {name: tensor for name, tensor in state.items() if name != "encoder.version"}
    write_torch(tmp_path / "b.pt", {"model": less})
    with pytest.raises(ValueError, match="only one of checkpoints 1 and 2 has encoder.version"):
        tool.average_files([tmp_path / "a.pt", tmp_path / "b.pt"], tmp_path / "out.pt")
    write_torch(tmp_path / "c.pt", {"model": {**state, "encoder.version": np.ones(2)}})
    with pytest.raises(ValueError, match=r"encoder.version has the shapes \(1,\) and \(2,\)"):
        tool.average_files([tmp_path / "a.pt", tmp_path / "c.pt"], tmp_path / "out.pt")
    write_torch(tmp_path / "d.pt", state)
    with pytest.raises(ValueError, match="d.pt is no checkpoint of fairseq's trainer"):
        tool.average_files([tmp_path / "a.pt", tmp_path / "d.pt"], tmp_path / "out.pt")
    assert {p.name for p in tmp_path.iterdir()} == {"a.pt", "b.pt", "c.pt", "d.pt"}
