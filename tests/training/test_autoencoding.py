"""A run through a bottleneck, from nothing or from a BART, to the hub, the picture and the tool."""

import json
import math

import jax
import numpy as np
import pytest
import yaml

import bart_hk
from bart_hk.checkpoint.tree import check_parameters
from bart_hk.cli import plot
from bart_hk.config import BARTConfig
from bart_hk.hub import BARTHubInterface
from bart_hk.text import train_bpe
from bart_hk.training.config import complete
from bart_hk.training.loop import train
from bart_hk.training.start import make_task, start
from tests.parameters import random_params
from tests.training.conftest import MODEL
from tools import evaluate_latent

WORDS = "an owl a lark the sea we saw".split()
TEXTS = [f"{one} {other}" for one in WORDS for other in WORDS if one != other]
TRAIN, HELD = TEXTS[::2], TEXTS[1::2]
SIZES = {
    "encoder_embed_dim": 32,
    "encoder_normalize_before": True,
    "decoder_normalize_before": True,
    "max_source_positions": 12,
    "max_target_positions": 12,
}
LATENT = MODEL | SIZES | {"_name": "bart_latent", "n_latent_tokens": 4, "latent_token_size": 8}


def config_of(texts, folder, **changes) -> dict:
    base = {
        "task": {"_name": "autoencoding", "data": str(texts), "vocab_size": 300, "unique": False},
        "model": LATENT,
        "criterion": {"_name": "autoencoding", "reg_slope": 0.1},
        "dataset": {"batch_size": 28, "length_buckets": [12], "validate_interval": 100},
        "optimization": {"lr": 1e-2, "max_epoch": 60, "clip_norm": 1.0},
        "lr_scheduler": "cosine",
        "common": {"log_interval": 10, "no_progress_bar": True},
        "checkpoint": {"save_dir": str(folder), "save_interval": 200},
    }
    for group, values in changes.items():
        base[group] = base[group] | values
    return base


def logged(folder, event: str) -> list[dict]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == event]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    (folder / "train.txt").write_text("\n".join(TRAIN * 4) + "\n")
    (folder / "valid.txt").write_text("\n".join(HELD) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(config_of(texts, folder))
    (folder / ".hydra").mkdir()  # as the command leaves it
    told = {"task": {"_name": "autoencoding", "data": str(texts)}}
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(told))
    return folder


def test_what_went_in_comes_out(run):
    bart = bart_hk.load(run)
    found = bart.decode_latent(bart.encode_latent(TRAIN))
    assert np.mean([a == b for a, b in zip(found, TRAIN, strict=True)]) >= 0.9
    path = bart.interpolate(TRAIN[0], TRAIN[1])
    assert len(path) == 11 and [path[0], path[-1]] == found[:2]


def test_the_log_has_what_latents_cost_and_how_much_it_weighs(run):
    lines = logged(run, "train")
    assert lines[-1]["nll_loss"] < 0.2 < 2 < lines[0]["nll_loss"]
    begin = 0
    for line in lines:  # means over the updates since the last one, by their tokens
        weights = [1 / (1 + math.exp(6.25 - 0.1 * i)) for i in range(begin, line["update"])]
        assert line["reg_weight"] == pytest.approx(np.mean(weights), rel=1e-2)
        begin = line["update"]
    assert 0 < lines[-1]["reg_loss"] < lines[0]["reg_loss"]


def test_the_regulariser_pulls_latents_to_the_prior(run):
    """tanh keeps their numbers below 1, so that they are not all the way."""
    latents = bart_hk.load(run).encode_latent(TEXTS)
    assert 0.3 < latents.std() < 1 and np.abs(latents).max() < 1


def begun(config: dict):
    """What a run of that configuration begins with."""
    whole = complete(config)
    return start(whole, make_task(whole), jax.random.key(0))


def test_any_bart_gets_a_bottleneck(texts, run, tmp_path):
    """A checkpoint's own parameters stay what they are."""
    sizes = {n: v for n, v in LATENT.items() if n != "_name" and "latent" not in n}
    encoder = train_bpe(TRAIN, 300)
    plain = BARTConfig(vocab_size=len(encoder.dictionary), **sizes)
    body = random_params(plain)
    BARTHubInterface(plain, body, encoder).save(tmp_path / "bart")
    asked = config_of(
        texts,
        tmp_path / "run",
        task={"vocab_size": None},
        model={"latent_variational": True, "latent_pooling": "mean"},
        criterion={"regularizer": "kl"},
        checkpoint={"restore_file": str(tmp_path / "bart")},
    )
    found = begun(asked)
    assert found.bart.config == plain.replace(
        n_latent_tokens=4, latent_token_size=8, latent_variational=True, latent_pooling="mean"
    )
    check_parameters(found.params["model"], found.bart.config)
    for path, leaves in body.items():
        for name, leaf in leaves.items():
            np.testing.assert_array_equal(found.params["model"][path][name], leaf)
    asked["model"] = {"_name": "bart_base"}
    with pytest.raises(ValueError, match="task=autoencoding needs a bottleneck.*set model=bart_l"):
        begun(asked)
    # Where there is one, it is the checkpoint's.
    asked["checkpoint"] |= {"restore_file": str(run)}
    asked["criterion"] |= {"regularizer": "mmd"}
    asked["model"] = LATENT | {"n_latent_tokens": 7}
    assert begun(asked).bart.config == bart_hk.load(run).config


def test_a_bottleneck_has_no_teacher(texts, run, tmp_path):
    asked = config_of(
        texts,
        tmp_path / "run",
        task={"vocab_size": None},
        checkpoint={"restore_file": str(run)},
    )
    with pytest.raises(
        ValueError, match="it has a bottleneck .n_latent_tokens=4., whose latents n"
    ):
        train(asked | {"distillation": {"teacher": str(run)}})


def test_the_picture(run, texts, tmp_path, capsys):
    plot.main(["latent", str(run)])
    *way, output = capsys.readouterr().out.splitlines()
    assert output == str(run / "latent.png") and len(way) == 11
    first = (run / "latent.png").read_bytes()
    assert first.startswith(b"\x89PNG") and len(first) > 10_000
    arguments = ["latent", str(run), "--texts", str(texts / "train.txt"), TRAIN[0], TRAIN[1]]
    other = tmp_path / "a.png"
    plot.main([*arguments, "--steps", "5", "-o", str(other), "--whole"])
    *way, _ = capsys.readouterr().out.splitlines()
    assert way[0].partition("\t")[2] == TRAIN[0] and len(way) == 5
    assert other.read_bytes() != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/at/all"], "nowhere/at/all"),
        (["{run}", "a"], "1 texts are given to go between; give two, or none"),
        (["{run}", "--limit", "2"], "--limit 2 must be at least 3"),
        (["{run}", "--texts", "none.txt"], "none.txt does not exist"),
        (["{run}", "--texts", "{long}"], "0 of 1 texts have at most 12 tokens"),
        (["{run}/last"], ".hydra/config.yaml does not say where texts are"),
        (["{run}", "--steps", "1"], "steps=1 must be a number of at least 2"),
    ],
)
def test_pictures_that_cannot_be(run, tmp_path, capsys, arguments, message):
    (tmp_path / "long.txt").write_text("an owl a lark the sea we saw, and all of it again\n")
    given = [a.format(run=run, long=tmp_path / "long.txt") for a in arguments]
    with pytest.raises(SystemExit) as exit:
        plot.main(["latent", *given])
    assert exit.value.code in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bart-hk-plot: error: ") and message in line


def test_the_tool_measures_it(run, texts, tmp_path, capsys):
    labelled = tmp_path / "labelled.tsv"
    rows = [f"{text}\t{'sea' if 'sea' in text else 'land'}" for text in TEXTS]
    labelled.write_text("text\tlabel\n" + "\n".join(rows) + "\n")
    arguments = [str(run), str(texts / "train.txt"), "--corpus", str(texts / "train.txt")]
    arguments += ["--labelled", str(labelled), "--perplexity", str(run), "--pairs", "4"]
    assert evaluate_latent.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = {line.partition(": ")[0].strip(): line.partition(": ")[2] for line in lines}
    assert lines[0] == f"28 texts of {texts / 'train.txt'}"
    assert float(shown["tokens"].rstrip("%")) > 95 and float(shown["exact"].rstrip("%")) >= 90
    assert shown["interpolations"].startswith("4 pairs, neither end: ")
    assert "held-out texts 100.00%" in shown["bigrams that the corpus has"]
    accuracy, chance = shown[f"probe, {labelled}"].split("%, chance ")
    assert float(accuracy) > float(chance.rstrip("%"))
    assert evaluate_latent.main([str(run), str(tmp_path / "none.txt")]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"evaluate_latent.py: {tmp_path / 'none.txt'} does not exist"
    ]
