"""A new encoder in front of a BART, through both stages, the hub, and what is refused."""

import jax
import numpy as np
import pytest
import yaml

import bart_hk
from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.data.readers import DataError
from bart_hk.tasks.losses import LabelSmoothedCrossEntropyConfig
from bart_hk.tasks.translation_with_source_encoder import (
    SourceEncoderTranslationConfig,
    TranslationWithSourceEncoder,
)
from bart_hk.text import TextEncoder, train_bpe
from bart_hk.training.config import ConfigError, complete
from bart_hk.training.loop import train
from bart_hk.training.start import make_task, start
from tests.parameters import random_params
from tests.tasks.tiny import ENCODER, MODEL
from tests.test_recipes import CONF

SOURCES = ["zwei drei", "eins", "drei vier eins", "vier", "zwei zwei", "eins drei"]
TARGETS = ["bb cc", "aa", "cc dd aa", "dd", "bb bb", "aa cc"]
FREEZE = {
    name: yaml.safe_load((CONF / f"experiment/source_encoder/{name}.yaml").read_text())["tuning"][
        "freeze"
    ]
    for name in ("first", "second")
}
RATE = 3e-3


def configured(folder, save_dir, restore, freeze, **task):
    return {
        "task": {
            "_name": "translation_with_source_encoder",
            "train": str(folder / "train.tsv"),
            "source_encoder_layers": 1,
            **task,
        },
        "criterion": "label_smoothed_cross_entropy",
        "tuning": {"freeze": freeze},
        "model": {"dropout": 0.0},
        "dataset": {"batch_size": 6, "length_buckets": [16]},
        "optimization": {"lr": RATE, "max_update": 1, "max_epoch": 0},
        "lr_scheduler": "fixed",
        "common": {"no_progress_bar": True},
        "checkpoint": {"restore_file": str(restore), "save_dir": str(save_dir)},
    }


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A folder with a BART and what the first stage made of it."""
    folder = tmp_path_factory.mktemp("stages")
    rows = [f"{a}\t{b}" for a, b in zip(SOURCES, TARGETS, strict=True)]
    (folder / "train.tsv").write_text("\n".join(["source\ttarget", *rows]) + "\n")
    write_model(folder / "bart", MODEL, random_params(MODEL, 0.3), also=ENCODER.save)
    source = {"source_vocab_size": 280}
    train(configured(folder, folder / "one", folder / "bart", FREEZE["first"], **source))
    return folder


def check_update(before, after, learns):
    """One update of Adam changed what learns, by at most the rate, and nothing else."""
    for path, leaves in before.items():
        for name, array in leaves.items():
            change = np.abs(array - after[path][name]).max()
            if not learns(path):
                assert change == 0, path
            elif not (name == "b" and path.endswith("k_proj")):  # no bias of keys has a gradient
                assert 0 < change <= 1.001 * RATE, path


def test_each_stage_trains_what_the_paper_says(stages):
    old, one = (read_model(stages / name) for name in ("bart", "one"))
    assert one.config.source_encoder_layers == 1
    first = complete(
        configured(stages, stages / "one", stages / "bart", FREEZE["first"], source_vocab_size=280)
    )
    key, _ = jax.random.split(jax.random.key(first.common.seed))  # as a run begins
    drawn = start(first, make_task(first), key).params["model"]
    beside = [
        *("encoder/embed_positions", "decoder/embed_positions"),
        *(f"encoder/layers_0/self_attn/{x}_proj" for x in "qkv"),
    ]
    check_update(
        {**drawn, **old.params},
        one.params,
        lambda path: path.startswith("source_encoder/") or path in beside,
    )
    assert {path for path in one.params if path.startswith("source_encoder/")} == {
        f"source_{path}" for path in one.params if path.startswith("encoder/")
    } | {"source_encoder/embed_tokens"}
    # The second begins with what the first one left, and nothing is frozen.
    train(configured(stages, stages / "two", stages / "one", FREEZE["second"]))
    two = read_model(stages / "two")
    assert two.config == one.config
    check_update(one.params, two.params, lambda path: True)
    with pytest.raises(DataError, match="has a tokenizer for its sources: leave out"):
        again = complete(
            configured(stages, stages / "two", stages / "one", [], source_vocab_size=280)
        )
        start(again, make_task(again), jax.random.key(0))


def test_the_hub_reads_one_vocabulary_and_writes_the_other(stages, tmp_path):
    bart = bart_hk.load(stages / "one")
    source = TextEncoder.load(stages / "one" / "source_tokenizer")
    assert bart.encode("drei vier").tolist() == [0, *source.encode("drei vier"), 2]
    assert len(source.dictionary) == bart.config.source_vocab_size != bart.config.vocab_size
    assert bart.task.source_dictionary.symbols == source.dictionary.symbols
    options = {"beam": 1, "max_len_b": 4, "attention": False}
    written = bart.sample("drei vier", **options)
    hypothesis = bart.generate(bart.encode(["drei vier"]), **options)[0][0]
    assert written == ENCODER.decode(np.asarray(hypothesis["tokens"]).tolist())
    scored = bart.score(["drei vier"], ["cc dd"])[0]
    ids = [0, *ENCODER.encode("cc dd"), 2]
    assert np.asarray(scored["tokens"]).tolist() == ids
    assert bart.score(["eins"], [np.array(ids, np.int32)])[0]["score"] != scored["score"]
    bart.save(tmp_path / "copy")
    assert bart_hk.load(tmp_path / "copy").sample("drei vier", **options) == written
    for what, call in (
        ("extract_features", lambda: bart.extract_features(bart.encode("eins"))),
        ("fill_mask", lambda: bart.fill_mask(["<mask>"])),
        ("score without targets", lambda: bart.score(["eins"])),
        ("attention", lambda: bart.attention("eins")),
    ):
        with pytest.raises(ValueError, match=f"^{what} needs a model that reads the vocabulary"):
            call()
    (tmp_path / "copy" / "source_tokenizer").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"needs a tokenizer of \d+ symbols .* and none is there"):
        bart_hk.load(tmp_path / "copy")


def test_what_is_refused(stages, tmp_path):
    def task(**options):
        config = SourceEncoderTranslationConfig(train=str(stages / "train.tsv"), **options)
        return TranslationWithSourceEncoder(config, LabelSmoothedCrossEntropyConfig())

    with pytest.raises(DataError, match="source_encoder_layers=0 must be at least 1"):
        task(source_encoder_layers=0)
    with pytest.raises(DataError, match="task.source_tokenizer or task.source_vocab_size, not bo"):
        task(source_tokenizer="x", source_vocab_size=300)
    with pytest.raises(DataError, match="set task.source_tokenizer or task.source_vocab_size: the"):
        task().text_encoder(ENCODER)
    odd = train_bpe(SOURCES, 280)
    odd.dictionary.eos_index = 3
    with pytest.raises(ValueError, match=r"are \(0, 1, 3\) in the tokenizer of the sources and"):
        ENCODER.with_source(odd)
    (tmp_path / "classes.tsv").write_text("sentence\tlabel\naa\tx\nbb\ty\n")
    with pytest.raises(ConfigError, match="task=sentence_prediction cannot train: take task=tran"):
        train(
            {
                "task": {"train": str(tmp_path / "classes.tsv")},
                "checkpoint": {
                    "restore_file": str(stages / "one"),
                    "save_dir": str(tmp_path / "run"),
                },
            }
        )
