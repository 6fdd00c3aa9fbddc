"""Autoencoding: one text for both sides, its noise, and what the loss is made of."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.data.readers import DataError
from bart_hk.model import BART
from bart_hk.tasks.autoencoding import (
    Autoencoding,
    AutoencodingConfig,
    AutoencodingCriterionConfig,
)
from bart_hk.tasks.latent_losses import kl, mmd
from bart_hk.tasks.losses import cross_entropy
from tests.parameters import random_params
from tests.tasks.tiny import ENCODER, MODEL

LINES = ["aa bb", "", "cc dd ee", "aa bb", "ff gg hh aa bb cc"]
TEXTS = [LINES[0], LINES[2], LINES[4]]
LATENT = MODEL.replace(n_latent_tokens=3, latent_token_size=2, latent_activation="identity")


def made(criterion: dict | None = None, **options) -> Autoencoding:
    config = AutoencodingConfig(**{"seed": 1} | options)
    return Autoencoding(config, AutoencodingCriterionConfig(**criterion or {}))


def encoded(criterion: dict | None = None, config=LATENT, **options) -> Autoencoding:
    task = made(criterion, **options)
    config = task.model_config(config, ENCODER)
    task.encode(ENCODER, config)
    return task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts")
    (path / "train.txt").write_text("\n".join(LINES) + "\n")
    with gzip.open(path / "dev.tsv.gz", "wt") as file:
        file.write("id\ten\tde\n1\taa bb\tzz\n2\tcc\tzz\n")
    return path


def test_lines_and_tables_give_each_text_once(folder):
    task = encoded(data=str(folder))
    assert list(task.texts()) == TEXTS and list(task.train.pairs.lines) == [1, 3, 5]
    assert task.valid.pairs.sources == ["aa bb", "cc"] and task.validates
    assert task.train.where([1]) == f"{folder / 'train.txt'}, lines 3"
    batch = task.train.batch(np.arange(3), 20, 4)
    rows = [[0, *ENCODER.encode(text), 2] for text in TEXTS]
    for row, ids in enumerate(rows):
        for name in ("src_tokens", "target"):
            assert batch[name][row][: len(ids)].tolist() == ids
        assert batch["prev_output_tokens"][row][: len(ids)].tolist() == [2, *ids[:-1]]
    assert (batch["target"][3] == 1).all()
    every = encoded(data=str(folder), unique=False)
    assert len(every.train.lengths) == 4
    other = encoded(train=str(folder / "dev.tsv.gz"), text_column="de")
    assert list(other.texts()) == ["zz"] and not other.validates


def test_noise_is_on_what_is_read_alone_and_an_epochs_own(folder):
    task = encoded(data=str(folder), noise="token_masking", mask=0.5)
    rows, length, mask = np.arange(3), 16, ENCODER.mask_id

    def read(split) -> np.ndarray:
        return split.batch(rows[: len(split.lengths)], length, 3)["src_tokens"]

    sources = {}
    for epoch in (1, 2, 1):
        task.begin_epoch(epoch)
        batch = task.train.batch(rows, length, 3)
        sources.setdefault(epoch, batch["src_tokens"])
        np.testing.assert_array_equal(sources[epoch], batch["src_tokens"])
        plain = batch["src_tokens"] != mask
        assert (batch["src_tokens"] == batch["target"])[plain].all() and (~plain).sum() > 3
        assert not (batch["target"] == mask).any()
    assert (sources[1] != sources[2]).any()
    np.testing.assert_array_equal(read(task.valid), read(task.valid))
    again = encoded(data=str(folder), noise="token_masking", mask=0.5, seed=2)
    again.begin_epoch(1)
    assert (read(again.train) != sources[1]).any()
    # More tokens than there is room for in the bucket: a longer one.
    longer = encoded(data=str(folder), noise="none", insert=1.0)
    assert longer.train.batch(rows[:1], 4, 1)["src_tokens"].shape == (1, 8)
    narrow = encoded(
        config=LATENT.replace(max_source_positions=9), data=str(folder), noise="none", insert=1.0
    )
    with pytest.raises(DataError, match="lines 3: noise has made 10 tokens of it, and the model t"):
        narrow.train.batch(rows[:2], 9, 2)


@pytest.mark.parametrize("regularizer", ["mmd", "kl"])
def test_the_loss_is_of_tokens_and_latents(folder, regularizer):
    criterion = {"regularizer": regularizer, "reg_weight": 3.0, "free_bits": 0.02}
    config = LATENT.replace(latent_variational=regularizer == "kl", dropout=0.0)
    task = encoded(criterion, config, data=str(folder))
    bart, params = BART(config), random_params(config)
    batch = task.train.batch(np.arange(3), 14, 4)

    @jax.jit
    def run(key, update):
        both = {**batch, "update": update}
        return task.loss(bart, {"model": params}, key, both)

    @jax.jit
    def by_hand(key):
        key, prior_key = jax.random.split(key)
        keys = jax.random.split(key)
        source = bart.encode(params, batch["src_tokens"], key=keys[0])
        features = bart.decode(params, batch["prev_output_tokens"], source).features
        real, rows = batch["target"] != 1, jnp.arange(4) < 3
        logits = bart.project(params, features)
        plain, _ = cross_entropy(logits, batch["target"], jnp.asarray(real))
        if regularizer == "kl":
            return plain, kl(source.latents, rows, 0.02)
        samples, prior = source.latents.drawn.reshape(12, 2), jax.random.normal(prior_key, (12, 2))
        return plain, mmd(samples, prior, jnp.repeat(rows, 3))

    key, count = jax.random.key(5), (batch["target"] != 1).sum()
    loss, sums = run(key, np.int32(2500))
    early, _ = run(key, np.int32(0))
    plain, cost = by_hand(key)
    times = 3 if regularizer == "kl" else count
    assert float(cost) > 0.01
    assert float(loss) == pytest.approx(float(plain + 3 * 0.5 * cost * times), rel=1e-4)
    share = 1 / (1 + np.exp(6.25))
    assert float(early) == pytest.approx(float(plain + 3 * share * cost * times), rel=1e-4)
    assert int(sums["count"]) == count
    assert float(sums["reg_weight"] / count) == pytest.approx(1.5)
    assert float(sums["reg_loss"] / count) == pytest.approx(float(cost), rel=1e-4)


@pytest.mark.parametrize(
    ("criterion", "options", "message"),
    [
        ({}, {}, "task.train is not set; give it a .txt, .tsv, .csv or .jsonl file"),
        ({}, {"data": "here"}, "task.data=here has no train.txt, train.tsv, train.csv or train.j"),
        ({}, {"train": "none.txt"}, "none.txt does not exist"),
        ({}, {"train": "empty.txt"}, "empty.txt holds no text"),
        ({}, {"train": "t.tsv"}, "t.tsv has the columns a, b: name the one with the texts in task"),
        ({}, {"train": "t.tsv", "text_column": "c"}, "'c'"),
        (
            {},
            {"train": "t.tsv", "source_column": "a"},
            "task.source_column=a: task=autoencoding has",
        ),
        ({}, {"train": "x", "noise": "loud"}, "task.noise=loud is not one of token_masking"),
        ({}, {"train": "x", "noise": "bart", "prepend_bos": False}, "set task.prepend_bos=true"),
        (
            {"regularizer": "l2"},
            {"train": "x"},
            "criterion.regularizer=l2 is not one of mmd, kl, n",
        ),
        (
            {"reg_schedule": "step"},
            {"train": "x"},
            "criterion.reg_schedule=step is not one of sigm",
        ),
        ({"free_bits": -1.0}, {"train": "x"}, "criterion.free_bits=-1.0 must not be negative"),
        (
            {"mmd_bandwidth": "0"},
            {"train": "x"},
            "criterion.mmd_bandwidth=0 must be d, d.2 or a nu",
        ),
        ({"mmd_bandwidth": "wide"}, {"train": "x"}, "criterion.mmd_bandwidth=wide must be d, d.2"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, monkeypatch, criterion, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "t.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(DataError, match=message) as error:
        made(criterion, **options)
    assert "\n" not in str(error.value)


def test_a_model_without_what_the_task_needs_is_refused(folder):
    with pytest.raises(DataError, match="needs a bottleneck, and n_latent_tokens=0: set model=ba"):
        encoded(config=MODEL, data=str(folder))
    with pytest.raises(
        DataError, match="regularizer=kl needs variances, and latent_variational=Fa"
    ):
        encoded({"regularizer": "kl"}, data=str(folder))
