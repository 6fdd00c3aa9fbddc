"""Pretraining as a user meets it: the bare command, the authors' recipe, languages, Ctrl-C."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import bart_hk
from bart_hk.cli import train as cli
from bart_hk.data.store import write_store
from tests.cli.test_train import TINY, data, run  # noqa: F401 - a fixture
from tests.tasks.test_denoising import write

# fairseq issue 1899; the arch is the size's.
COMMAND = """--fp16 --mask 0.3 --tokens-per-sample 512 --total-num-update 500000 --max-update 500000
 --warmup-updates 10000 --task denoising --save-interval 1 --arch bart_large --optimizer adam
 --lr-scheduler polynomial_decay --lr 0.0004 --dropout 0.1 --criterion cross_entropy
 --max-tokens 3200 --weight-decay 0.01 --attention-dropout 0.1 --share-all-embeddings
 --clip-norm 0.1 --skip-invalid-size-inputs-valid-test --log-format json --log-interval 1000
 --save-interval-updates 5000 --keep-interval-updates 1 --update-freq 4 --seed 4
 --distributed-world-size 256 --no-epoch-checkpoints --mask-length span-poisson
 --replace-length 1 --encoder-learned-pos --decoder-learned-pos --rotate 0.0 --mask-random 0.1
 --permute-sentences 1 --insert 0.0 --poisson-lambda 3.5 --dataset-impl mmap --bpe gpt2
 --num-workers 4"""
# What fairseq's defaults add where the command is silent.
DEFAULTS = {
    "task.sample_break_mode": "complete_doc",
    "optimizer.adam_betas": [0.9, 0.999],
    "optimizer.adam_eps": 1e-8,
    "optimizer.epsilon": "fairseq",
    "lr_scheduler.end_learning_rate": 0.0,
    "lr_scheduler.power": 1.0,
    "model.activation_dropout": 0.0,
    "model.encoder_layerdrop": 0.0,
    "model.activation_fn": "gelu",
    "model.max_source_positions": 1024,
    "model.max_target_positions": 1024,
    "optimization.sentence_avg": False,
}
# Flags that have no key here; conf/experiment/pretrain_bart_large.yaml says why.
WITHOUT_KEY = {
    "skip-invalid-size-inputs-valid-test",
    "log-format",
    "keep-interval-updates",
    "no-epoch-checkpoints",
    "distributed-world-size",
    "dataset-impl",
    "bpe",
}
RENAMED = {
    "seed": "common.seed",
    "fp16": "common.bf16",
    "task": "task._name",
    "arch": "model._name",
    "optimizer": "optimizer._name",
    "lr-scheduler": "lr_scheduler._name",
    "criterion": "criterion._name",
}


def shown(monkeypatch, capsys, *overrides: str) -> dict:
    """What `--cfg job` shows, under "group.key"."""
    assert run(monkeypatch, "--cfg", "job", *overrides) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    return {
        f"{group}.{key}": value
        for group, section in config.items()
        for key, value in section.items()
    }


def flags() -> dict[str, str | bool]:
    words, found = shlex.split(COMMAND), {}
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        if word.startswith("--"):
            found[word[2:]] = True if following.startswith("--") else yaml.safe_load(following)
    return found


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_authors_command_flag_by_flag(data, monkeypatch, capsys, size):  # noqa: F811
    config = shown(monkeypatch, capsys, f"experiment=pretrain_bart_{size}")
    text = (cli._CONF / "experiment" / "pretrain_bart_large.yaml").read_text()
    compared = 0
    for flag, value in flags().items():
        if flag in WITHOUT_KEY:
            assert flag in text or flag.endswith(("world-size", "log-format"))
            continue
        keys = [RENAMED.get(flag)] if flag in RENAMED else []
        keys = keys or [k for k in config if k.partition(".")[2] == flag.replace("-", "_")]
        assert len(keys) == 1, (flag, keys)
        expected = f"bart_{size}" if flag == "arch" else value
        assert config[keys[0]] == expected, flag
        compared += 1
    assert compared == len(flags()) - len(WITHOUT_KEY) > 25
    assert {key: config[key] for key in DEFAULTS} == DEFAULTS
    layers, width = {"base": (6, 768), "large": (12, 1024)}[size]
    assert (config["model.encoder_layers"], config["model.decoder_layers"]) == (layers, layers)
    assert config["model.encoder_embed_dim"] == width
    assert config["optimization.max_epoch"] == 0 and config["dataset.batch_size"] is None


def test_the_readmes_command_trains_from_scratch(data, monkeypatch, capsys):  # noqa: F811
    text = (Path(cli.__file__).parents[2] / "README.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^bart-hk-train (task=denoising task.data=DATA .*)$", text, re.M)
    config = shown(monkeypatch, capsys, *command.split())
    assert config["optimization.lr"] == 4e-4 and config["lr_scheduler.warmup_ratio"] > 0


NETWORK = [x for x in TINY if x.startswith("model.") and "positions" not in x]
NETWORK += ["model.max_source_positions=64", "model.max_target_positions=64"]
SMALL = [*NETWORK, "task.tokens_per_sample=48", "dataset.length_buckets=[64]"]


def test_the_bare_command(data, monkeypatch):  # noqa: F811
    write(data / "DATA" / "books", documents=20)
    options = ["optimization.max_update=2", "checkpoint.save_dir=out", *SMALL]
    assert run(monkeypatch, "task=denoising", "task.data=DATA", *options) == 0
    lines = [json.loads(line) for line in (data / "out" / "log.jsonl").read_text().splitlines()]
    assert {line["event"] for line in lines} == {"train", "valid"}
    record = json.loads((data / "out" / "training" / "run.json").read_text())
    assert record["criterion._name"] == "cross_entropy"


def test_languages(data, monkeypatch):  # noqa: F811
    """Two languages through the experiment: their symbols are added and end the texts."""
    write(data / "DATA" / "en_XX", documents=30, valid=5)
    write(data / "DATA" / "ro_RO", documents=6, seed=1, valid=5)
    options = ["experiment=multilingual", "task.data=DATA", "checkpoint.save_dir=out", *SMALL]
    options += ["dataset.max_tokens=512", "optimization.max_update=12", "optimization.lr=0.01"]
    options += ["lr_scheduler.warmup_updates=2", "lr_scheduler.total_num_update=20"]
    options += ["common.log_interval=4", "common.bf16=false"]
    assert run(monkeypatch, *options) == 0
    lines = [json.loads(line) for line in (data / "out" / "log.jsonl").read_text().splitlines()]
    losses = [line["nll_loss"] for line in lines if line["event"] == "train"]
    assert losses[-1] < losses[0]
    bart = bart_hk.load(data / "out")
    dictionary = bart.task.source_dictionary
    symbols = [dictionary.index(f"[{name}]") for name in ("en_XX", "ro_RO")]
    assert symbols == [len(dictionary) - 3, len(dictionary) - 2]  # before <mask>
    assert dictionary[len(dictionary) - 1] == "<mask>"
    config = json.loads((data / "out" / "config.json").read_text())
    assert config["vocab_size"] == len(dictionary)
    record = json.loads((data / "out" / "training" / "run.json").read_text())
    assert record["task.multilang_sampling_alpha"] == 0.7 and record["task.mask"] == 0.35


@pytest.mark.parametrize("workers", [2])
def test_interrupts_and_terminations_of_the_whole_process_group(data, workers):  # noqa: F811
    """As a terminal and a scheduler send them: to the workers, too."""
    write(data / "DATA", documents=20)
    command = [sys.executable, "-m", "bart_hk.cli.train", "task=denoising", "task.data=DATA"]
    command += ["checkpoint.save_dir=out", f"dataset.num_workers={workers}", *SMALL]
    command += ["optimization.max_epoch=100000", "lr_scheduler=fixed", "common.log_interval=1"]
    command += ["checkpoint.save_interval=100000", "dataset.validate_interval=100000"]
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    log = data / "out" / "log.jsonl"

    def ended_by(number: int) -> tuple[int, str]:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        before = log.stat().st_size if log.exists() else 0
        end = time.monotonic() + 100
        while process.poll() is None and time.monotonic() < end:
            if log.exists() and log.stat().st_size > before + 1000:
                break
            time.sleep(0.05)
        os.killpg(process.pid, number)
        try:
            _, said = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise
        for _ in range(100):  # nobody is left
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
        else:
            pytest.fail("a worker is left")
        return process.returncode, said

    code, said = ended_by(signal.SIGINT)
    assert code == 130, said
    assert said.strip() == "bart-hk-train: interrupted; the same command goes on"
    code, said = ended_by(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and "Traceback" not in said, said
    (saved,) = (data / "out" / "training").glob("update_*")
    assert int(re.sub(r"\D", "", saved.name)) > 1


def nothing_in_it(folder: Path) -> None:
    write_store(folder / "train", np.full(5, 2), np.ones(5, np.int64), 300)  # </s> five times


def single_tokens(folder: Path) -> None:
    write_store(folder / "train", np.array([9, 2, 2] * 4), np.array([2, 1] * 4), 300)


def ends_early(folder: Path) -> None:
    os.truncate(folder / "train.bin", (folder / "train.bin").stat().st_size - 2)


def lies(folder: Path) -> None:
    index = bytearray((folder / "train.idx").read_bytes())
    index[26] += 1  # the first size
    (folder / "train.idx").write_bytes(index)


def foreign_ids(folder: Path) -> None:
    tokens = np.frombuffer((folder / "train.bin").read_bytes(), np.uint16).copy()
    tokens[3] = 9999
    (folder / "train.bin").write_bytes(tokens.tobytes())


@pytest.mark.parametrize(
    ("spoil", "override", "message"),
    [
        (nothing_in_it, "", "DATA/train.bin has no text: 5 sentences, all empty"),
        (single_tokens, "", "train.bin has no document of more than one token; there is nothing"),
        (ends_early, "", "train.bin ends early: it has "),
        (lies, "", "train.idx: item 1 begins at byte "),
        (foreign_ids, "", "train.bin holds the id 9999, and the model's tokenizer has 295 symbols"),
        (None, "task.tokens_per_sample=65", "=65 is more than the model's 64 positions; lower it"),
        (None, "task.data=nowhere", "task.data=nowhere is not a folder"),
        (None, "task.train=x", "there is no task.train; there are task.data, task.noise, "),
        (None, "task.seed=-1", "task.seed=-1 must be in [0, 2^64)"),
        (None, "task.insert=0 task.mask_length=word task.mask=0", "task.mask_length=word does no"),
        (None, "model.flavour=encoder_only task.noise=none", "masks nothing, and an encoder_onl"),
        (None, "dataset.num_workers=-1", "dataset.num_workers=-1 must be at least 0"),
        (None, "dataset.worker_timeout=0", "dataset.worker_timeout=0.0 must be above 0"),
        (None, "dataset.data_buffer_size=0", "dataset.data_buffer_size=0 must be at least 1"),
        (None, "checkpoint.reset_meters=false", "reset_meters=false needs checkpoint.restore_file"),
    ],
)
def test_bad_data_are_one_line_before_the_first_update(
    data,  # noqa: F811
    monkeypatch,
    capfd,
    spoil,
    override,
    message,
):
    write(data / "DATA", documents=3, valid=0)
    if spoil is not None:
        spoil(data / "DATA")
    overrides = ["task=denoising", "task.data=DATA", "checkpoint.save_dir=out", *SMALL]
    assert run(monkeypatch, *overrides, *override.split()) == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith("bart-hk-train: error: ") and message in error and "\n" not in error
    assert not list((data / "out" / "training").glob("update_*"))
