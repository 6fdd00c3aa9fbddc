"""`bart-hk-preprocess`: the command line."""

import errno
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bart_hk.cli.preprocess import main
from bart_hk.data.store import TokenStore
from bart_hk.text import TextEncoder

WORDS = "the cat sat on a mat and saw his dog under that old tree".split()


@pytest.fixture
def text(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(WORDS, 8)) + ("\n" if i % 3 else "\n\n") for i in range(600)]
    (tmp_path / "text.txt").write_text("".join(lines))
    return tmp_path / "text.txt"


@pytest.fixture(autouse=True)
def quiet_logs():
    yield
    logging.getLogger().handlers.clear()


def test_gpt2_stores_from_which_a_run_can_start(text, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(text), "--output", str(out), "--valid-share", "0.1", "--workers", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr().out.splitlines()
    encoder = TextEncoder.load(out)
    assert encoder.dictionary == TextEncoder.gpt2().dictionary
    for role, line in zip(("train", "valid"), said, strict=False):
        store = TokenStore(out / role)
        store.check_vocabulary(len(encoder.dictionary), "dict.txt")
        assert f"{store.sizes.sum():,} tokens, 0 % <unk>" in line and line.startswith(
            f"{out}/{role}"
        )
    assert "million tokens/s" in said[2]
    assert encoder.decode(TokenStore(out / "train")[0]) in text.read_text()
    assert main(arguments) == 0  # complete already


def test_a_sentencepiece_model_of_the_text(text, tmp_path, caplog):
    out = tmp_path / "out"
    arguments = [str(text), "--output", str(out), "--sentencepiece", "310", "--quiet"]
    assert main([*arguments, "--workers", "2"]) == 0
    encoder = TextEncoder.load(out)
    assert (out / "sentencepiece.bpe.model").exists() and (out / "dict.txt").exists()
    assert 261 < len(encoder.dictionary) < 310
    assert caplog.messages == [f"the text gives {len(encoder.dictionary)} symbols, not 310"]
    assert encoder.mask_id == len(encoder.dictionary) - 1
    first = text.read_text().splitlines()[0]
    assert encoder.decode(TokenStore(out / "train")[0]) == first
    assert main([str(text), "--output", str(tmp_path / "again"), *arguments[3:]]) == 0
    for name in ("sentencepiece.bpe.model", "dict.txt", "train.bin", "train.idx"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()
    # The same tokenizer for another text.
    (tmp_path / "more.txt").write_text("the dog é\n")
    more = tmp_path / "more"
    assert main([str(tmp_path / "more.txt"), "--output", str(more), "--tokenizer", str(out)]) == 0
    assert TextEncoder.load(more).dictionary == encoder.dictionary
    manifest = json.loads((more / "preprocess.json").read_text())
    assert manifest["splits"]["train"]["unknown"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--output", "out"], "nowhere does not exist"),
        (["text.txt", "--output", "out", "--workers", "0"], "--workers 0 must be at least 1"),
        (["text.txt", "--output", "out", "--sample", "0"], "--sample 0 must be at least 1"),
        (
            ["text.txt", "--output", "out", "--valid", "text.txt", "--valid-share", "0.1"],
            "give --valid or --valid-share, not both",
        ),
        (
            ["text.txt", "--output", "out", "--valid", "text.txt"],
            "text.txt is given to train and to validate on",
        ),
        (["text.txt", "--output", "out", "--valid-share", "2"], "2.0, is not in [0, 1)"),
        (["text.txt", "--output", "out", "--sentencepiece", "200"], "vocab_size 200 is too small"),
        (["text.txt", "--output", "out", "--tokenizer", "gpt3"], "no model 'gpt3'"),
        (["text.txt", "--output", "text.txt"], "text.txt"),
        ([".", "--output", "out"], "--output out is in ., whose texts are read; name another"),
        (["text.txt", "--output", "/proc/out"], "/proc/out"),
        (["empty.txt", "--output", "out"], "there is no text to train on"),
        (["a.json", "--output", "out"], "a.json: .json would be read as plain text; convert it to"),
        (
            ["text.txt", "--output", "out", "--sentencepiece", "300", "--tokenizer", "bart.base"],
            "give --sentencepiece or --tokenizer, not both",
        ),
        (["text.txt", "--output", "out", "--sample", "9"], "--sample is for --sentencepiece, whi"),
        (["text.txt", "--output", "out", "--no-byte-fallback"], "--byte-fallback is for --senten"),
        (["text.txt", "--output", "out", "--seed", "2"], "--seed is for --valid-share, which is"),
        (["text.txt", "--output", "out", "--field", "x"], "--field x is for .jsonl, and there is"),
        (["empty.txt", "--output", "out", "--sentencepiece", "300"], "there is no text"),
    ],
)
def test_what_is_wrong_is_one_line(text, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "a.json").write_text("[]")
    assert main([*arguments, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("bart-hk-preprocess: ") and message in said
    assert said.count("\n") == 1


def test_a_disk_that_is_full_from_the_start_is_named(text, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("bart_hk.cli.preprocess.preprocess", full)
    assert main([str(text), "--output", "out"]) == 2
    said = capsys.readouterr().err
    assert "preprocess: --output out: No space left on device; with room the same comman" in said


def test_interrupted_it_says_so(text, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bart_hk.cli.preprocess.preprocess", interrupt)
    assert main([str(text), "--output", str(tmp_path / "out")]) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err


def test_the_command_is_installed_and_explains_itself():
    command = Path(sys.executable).with_name("bart-hk-preprocess")
    done = subprocess.run([command, "--help"], capture_output=True, text=True, check=True)
    assert "an empty line ends a document" in done.stdout and "--sentencepiece SIZE" in done.stdout
