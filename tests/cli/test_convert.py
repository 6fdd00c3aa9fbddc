"""`bart-hk-convert`: every direction, bit for bit; what cannot be said is refused."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.cli.convert import main
from bart_hk.config import BARTConfig
from bart_hk.hub.opening import open_model
from bart_hk.text import TextEncoder
from tests.parameters import random_params

TEXT = TextEncoder.gpt2()
CONFIG = BARTConfig(
    vocab_size=len(TEXT.dictionary),
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    encoder_layers=2,
    encoder_attention_heads=2,
    decoder_ffn_embed_dim=24,
    decoder_layers=1,
    decoder_attention_heads=2,
    max_source_positions=32,
    max_target_positions=32,
    decoder_start_token_id=0,
    forced_bos_token_id=None,
)


def head(classes: int, seed: int, labels: list[str] | None = None) -> HeadFiles:
    rng = np.random.default_rng(seed)
    shapes = {"dense": (16, 16), "out_proj": (16, classes)}
    params = {
        name: {
            "w": rng.standard_normal(shape, np.float32),
            "b": rng.standard_normal(shape[1:], np.float32),
        }
        for name, shape in shapes.items()
    }
    return HeadFiles(params, labels)


HEADS = {"mood": head(2, 0, ["sad", "glad"]), "topic": head(3, 1)}


@pytest.fixture(scope="module")
def native(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "native"
    write_model(folder, CONFIG, random_params(CONFIG), HEADS, {"note": "kept"}, also=TEXT.save)
    return folder


def assert_equal_trees(found, expected):
    assert found.keys() == expected.keys()
    for path, leaves in expected.items():
        assert found[path].keys() == leaves.keys()
        for name, array in leaves.items():
            np.testing.assert_array_equal(found[path][name], array)
            assert found[path][name].dtype == array.dtype


def assert_everything(folder: Path, params=None) -> None:
    (model,), text = open_model(folder)
    assert model.config == CONFIG
    assert_equal_trees(model.params, params or random_params(CONFIG))
    assert model.heads.keys() == HEADS.keys()
    for name, expected in HEADS.items():
        assert model.heads[name].labels == expected.labels
        assert_equal_trees(model.heads[name].params, expected.params)
    assert model.extras["note"] == "kept"
    assert text.dictionary.symbols == TEXT.dictionary.symbols
    assert text.encode("Hello world! \u00e9\u00df") == TEXT.encode("Hello world! \u00e9\u00df")


@pytest.mark.parametrize("to", ["fairseq", "hf", "native", "flax", "per-head"])
def test_there_and_back_nothing_is_lost(native, tmp_path, to):
    assert main([str(native), str(tmp_path / "there"), "--to", to]) == 0
    assert_everything(tmp_path / "there")
    assert main([str(tmp_path / "there"), str(tmp_path / "back"), "--to", "native"]) == 0
    assert_everything(tmp_path / "back")
    assert {path.name for path in tmp_path.iterdir()} == {"there", "back"}
    before, after = (read_model(folder) for folder in (native, tmp_path / "back"))
    assert_equal_trees(after.params, before.params)
    if to == "fairseq":
        assert (tmp_path / "there" / "model.pt").is_file()
        assert main([str(tmp_path / "there"), str(tmp_path / "again"), "--to", "fairseq"]) == 0
        again, there = (tmp_path / name / "model.pt" for name in ("again", "there"))
        assert again.read_bytes() == there.read_bytes()


@pytest.mark.parametrize(("name", "dtype"), [("fp16", "float16"), ("bf16", "bfloat16")])
@pytest.mark.parametrize("to", ["fairseq", "hf"])
def test_the_dtype_of_what_is_written(native, tmp_path, to, name, dtype):
    assert main([str(native), str(tmp_path / "half"), "--to", to, "--dtype", name]) == 0
    (model,), _ = open_model(tmp_path / "half")
    for path, leaves in random_params(CONFIG).items():
        for leaf, array in leaves.items():
            found = np.asarray(model.params[path][leaf])
            assert str(found.dtype) == dtype
            np.testing.assert_array_equal(found, array.astype(found.dtype))
    assert str(np.asarray(model.heads["mood"].params["dense"]["w"]).dtype) == dtype
    # Casting to float32 and back is exact.
    assert (
        main([str(tmp_path / "half"), str(tmp_path / "full"), "--to", to, "--dtype", "fp32"]) == 0
    )
    (full,), _ = open_model(tmp_path / "full")
    table = np.asarray(full.params["embed_tokens"]["embeddings"])
    np.testing.assert_array_equal(
        table, np.asarray(model.params["embed_tokens"]["embeddings"]).astype(np.float32)
    )


def test_a_head_for_transformers(native, tmp_path):
    out = tmp_path / "classifier"
    assert main([str(native), str(out), "--to", "hf", "--head", "mood"]) == 0
    model = read_model(out)
    assert model.heads["mood"].labels == ["sad", "glad"] and "topic" in model.heads
    assert '"BartForSequenceClassification"' in (out / "config.json").read_text()


@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
def test_a_head_that_reads_every_token_is_not_transformers(native, tmp_path, capsys, task):
    (model,), _ = open_model(native)
    extras = {"training": {"task": task}}
    write_model(tmp_path / "one", CONFIG, model.params, {"mood": model.heads["mood"]}, extras)
    TEXT.save(tmp_path / "one")
    arguments = [str(tmp_path / "one"), str(tmp_path / "out"), "--to", "hf"]
    assert f"the head 'mood' reads every token (task={task})" in refused(
        capsys, *arguments, "--head", "mood"
    )
    assert main(arguments) == 0
    (found,), _ = open_model(tmp_path / "out")
    assert set(found.heads) == {"mood"}


def test_texts_without_bos_are_mentioned_where_they_would_get_one(native, tmp_path, caplog):
    shutil.copytree(native, tmp_path / "trained")
    record = tmp_path / "trained" / "bart_hk.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"prepend_bos": False}))
    for to in ("hf", "fairseq", "native"):
        assert main([str(tmp_path / "trained"), str(tmp_path / to), "--to", to]) == 0
    said = [message for message in caplog.messages if "was trained on texts without <s>" in message]
    assert len(said) == 2
    main([str(native), str(tmp_path / "plain"), "--to", "hf"])
    assert len([message for message in caplog.messages if "without <s>" in message]) == 2


def test_a_head_that_came_from_transformers_goes_back_unnamed(native, tmp_path):
    (model,), _ = open_model(native)
    heads = {"classification_head": model.heads["mood"]}
    write_model(tmp_path / "one", CONFIG, model.params, heads, also=TEXT.save)
    for to in ("native", "fairseq", "hf"):
        assert main([str(tmp_path / "one"), str(tmp_path / to), "--to", to]) == 0
        (found,), _ = open_model(tmp_path / to)
        assert found.heads["classification_head"].labels == ["sad", "glad"]
    kinds = [(tmp_path / to / "config.json").read_text() for to in ("native", "hf")]
    assert ["ForSequenceClassification" in kind for kind in kinds] == [False, True]


def refused(capsys, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_done_is_said_in_one_line(native, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert "no model 'bart.bass'" in refused(capsys, "bart.bass", out, "--to", "hf")
    assert "no head 'mod'; there are: mood, topic" in refused(
        capsys, str(native), out, "--to", "hf", "--head", "mod"
    )
    assert "--head mood is for --to hf and flax: --to fairseq keeps every head" in refused(
        capsys, str(native), out, "--to", "fairseq", "--head", "mood"
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "full is there already" in refused(
        capsys, str(native), str(tmp_path / "full"), "--to", "hf"
    )
    write_model(
        tmp_path / "dot", CONFIG, random_params(CONFIG), {"a.b": HEADS["mood"]}, also=TEXT.save
    )
    assert "register the head as 'a_b'" in refused(
        capsys, str(tmp_path / "dot"), out, "--to", "fairseq"
    )
    odd = CONFIG.replace(layernorm_embedding=False)
    write_model(tmp_path / "odd", odd, random_params(odd), also=TEXT.save)
    assert "no BART with layernorm_embedding=False; write it with --to native" in refused(
        capsys, str(tmp_path / "odd"), out, "--to", "hf"
    )
    assert "no BART with layernorm_embedding=False; write it with --to native" in refused(
        capsys, str(tmp_path / "odd"), out, "--to", "flax"
    )
    assert "bart-base-jax has no BART with layernorm_embedding=False" in refused(
        capsys, str(tmp_path / "odd"), out, "--to", "per-head"
    )
    assert "--max-shard-size is for --to hf, flax and native: per-head has one file" in refused(
        capsys, str(native), out, "--to", "per-head", "--max-shard-size", "1MB"
    )
    assert main([str(tmp_path / "odd"), out, "--to", "native"]) == 0


@pytest.mark.parametrize("to", ["fairseq", "hf"])
def test_a_disk_that_fills_up_leaves_nothing_under_the_name(native, tmp_path, to):
    assert (native / "model.safetensors").stat().st_size > 2_000_000
    program = (
        "import resource, signal, sys; from bart_hk.cli.convert import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)); sys.exit(main())"
    )
    command = [sys.executable, "-c", program, native, tmp_path / "out", "--to", to]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 2, run.stderr
    (line,) = run.stderr.splitlines()
    assert "cannot save" in line and "File too large" in line
    assert not list(tmp_path.iterdir())


def test_shards(native, tmp_path):
    folder = tmp_path / "shards"
    assert main([str(native), str(folder), "--to", "native", "--max-shard-size", "1MB"]) == 0
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert not (folder / "model.safetensors").exists()
    assert_everything(folder)


@pytest.mark.parametrize("size", ["15XB", "MB", "0MB", "-5", "1.5GB"])
def test_sizes_that_are_none(native, tmp_path, capsys, size):
    with pytest.raises(SystemExit):
        main([str(native), str(tmp_path / "out"), "--to", "hf", f"--max-shard-size={size}"])
    assert f"{size!r} is no size such as 15MB or 5GB" in capsys.readouterr().err


def test_fairseq_has_no_shards(native, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main([str(native), out, "--to", "fairseq", "--max-shard-size", "1MB"]) == 2
    assert "--max-shard-size is for --to hf, flax and native" in capsys.readouterr().err


def test_a_student_keeps_some_layers(native, tmp_path, capsys):
    deep = CONFIG.replace(encoder_layers=4, decoder_layers=6)
    teacher = random_params(deep)
    write_model(tmp_path / "teacher", deep, teacher, HEADS, also=TEXT.save)
    arguments = ["--to", "native", "--encoder-layers", "2", "--decoder-layers", "3"]
    assert main([str(tmp_path / "teacher"), str(tmp_path / "student"), *arguments]) == 0
    stored = read_model(tmp_path / "student")
    assert stored.config == deep.replace(encoder_layers=2, decoder_layers=3)
    kept = {"encoder": (0, 3), "decoder": (0, 2, 5)}

    def source(path: str) -> str:
        return re.sub(
            r"^(encoder|decoder)/layers_(\d+)",
            lambda found: f"{found[1]}/layers_{kept[found[1]][int(found[2])]}",
            path,
        )

    expected = {path: teacher[source(path)] for path in parameter_shapes(stored.config)}
    assert_equal_trees(stored.params, expected)
    assert stored.heads.keys() == HEADS.keys()
    arguments = ["--to", "native", "--decoder-layers", "2"]
    assert main([str(native), str(tmp_path / "other"), *arguments]) == 2
    assert "--decoder-layers 2: 2 layers cannot be taken from 1" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
