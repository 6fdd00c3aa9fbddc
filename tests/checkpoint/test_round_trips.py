"""A model through every format and back: tensors bit for bit, and everything that belongs to it."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest
import sentencepiece

from bart_hk.checkpoint.fairseq_file import TASK_HEAD, read_fairseq, write_fairseq
from bart_hk.checkpoint.flax import FLAX_WEIGHTS
from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.model_files import ModelFiles
from bart_hk.checkpoint.per_head import PER_HEAD_WEIGHTS
from bart_hk.text import SentencePieceBPE, TextEncoder, train_bpe
from bart_hk.text.sentencepiece import PLBART, PLBART_LANGUAGES
from tests.conftest import GOLDENS

TEXTS = ["the cat sat on the mat", "Ünï 😀", "<s> <mask>"]
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}


class Whole(NamedTuple):
    model: ModelFiles
    text: TextEncoder


def to_fairseq(whole: Whole, folder: Path) -> None:
    model = whole.model
    write_fairseq(folder, model.config, model.params, model.heads, whole.text, extras=model.extras)


def from_fairseq(folder: Path) -> Whole:
    model = read_fairseq(folder / "model.pt")
    text = TextEncoder.load(folder, model.extras.get("langs", ()))
    return Whole(model, text.fit(model.config.vocab_size, exact=True))


def to_native(whole: Whole, folder: Path, head: str | None = None) -> None:
    model = whole.model
    parts = (model.config, model.params, model.heads, model.extras)
    write_model(folder, *parts, head=head, also=whole.text.save)


def to_classifier(whole: Whole, folder: Path) -> None:
    to_native(whole, folder, TASK_HEAD)


def to_flax(whole: Whole, folder: Path, layout: str = FLAX_WEIGHTS) -> None:
    model = whole.model
    parts = (model.config, model.params, model.heads, model.extras)
    write_model(folder, *parts, layout=layout, also=whole.text.save)


def to_per_head(whole: Whole, folder: Path) -> None:
    to_flax(whole, folder, PER_HEAD_WEIGHTS)


def from_native(folder: Path) -> Whole:
    model = read_model(folder)
    return Whole(model, TextEncoder.load(folder).fit(model.config.vocab_size))


ROUTES: dict[str, list[tuple[Callable[..., None], Callable[[Path], Whole]]]] = {
    "fairseq": [(to_fairseq, from_fairseq)],
    "twice": [(to_fairseq, from_fairseq)] * 2,
    "there and back": [(to_fairseq, from_fairseq), (to_native, from_native)],
    "from native": [(to_native, from_native), (to_fairseq, from_fairseq)],
    "flax": [(to_flax, from_native), (to_fairseq, from_fairseq), (to_flax, from_native)],
    "per head": [(to_per_head, from_native), (to_flax, from_native), (to_native, from_native)],
    "classifier": [(to_fairseq, from_fairseq), (to_classifier, from_native)] * 2,
}


def byte_level() -> TextEncoder:
    return train_bpe(["the cat sat on the mat, the hat"] * 3, 280)


def mbart(layout: str = "MBartTokenizer", languages: Sequence[str] | None = None) -> TextEncoder:
    model = io.BytesIO()
    lines = (GOLDENS / "inputs" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=200, minloglevel=2
    )
    bpe = SentencePieceBPE(model.getvalue())
    return TextEncoder(bpe, bpe.dictionary(layout, languages), tokenizer_class=layout)


def plbart() -> TextEncoder:
    return mbart(PLBART, PLBART_LANGUAGES["multi"])


MODELS: dict[str, tuple[Callable[[], TextEncoder], dict[str, Any], Any]] = {
    "bart": (byte_level, {}, np.float32),
    "half": (byte_level, {"forced_bos_token_id": None}, np.float16),
    "other start": (byte_level, {"decoder_start_token_id": 0}, ml_dtypes.bfloat16),
    "plbart": (plbart, {"no_scale_embedding": False, "decoder_start_token_id": 9}, np.float32),
    "mbart": (mbart, {**PRE_NORM, "no_scale_embedding": False}, np.float32),
}


# transformers has no Flax PLBart, and bart-base-jax no model that scales or normalises before.
NO_WAY = {("plbart", "flax"), ("plbart", "per head"), ("mbart", "per head")}
WAYS = [(kind, route) for kind in MODELS for route in ROUTES if (kind, route) not in NO_WAY]


@pytest.mark.parametrize(("kind", "route"), WAYS)
def test_round_trip(tmp_path, small, random_params, random_head, assert_equal, kind, route):
    make, changes, dtype = MODELS[kind]
    text = make()
    config = small(vocab_size=len(text.dictionary), **changes)
    heads = {
        TASK_HEAD: random_head(labels=["bad", "so so", "good"]),
        "wide": random_head(16, 24, 2, labels=["no", "yes"]),
        "grade": random_head(16, 16, 1, regression=True),
    }
    for head in heads.values():
        head.params = jax.tree.map(lambda a: a.astype(dtype), head.params)
    extras: dict[str, Any] = {"generation": {"beam": 4, "lenpen": 2.0}}
    if kind == "plbart":
        extras["model_type"] = kind
    first = Whole(ModelFiles(config, random_params(config, dtype), heads, extras), text)
    whole = first
    for number, (write, read) in enumerate(ROUTES[route]):
        write(whole, tmp_path / str(number))
        whole = read(tmp_path / str(number))
    assert whole.model.config == config
    assert_equal(whole.model.params, first.model.params)
    assert whole.model.heads.keys() == heads.keys()
    for name, head in heads.items():
        assert_equal(whole.model.heads[name].params, head.params)
        assert whole.model.heads[name].labels == head.labels
        assert whole.model.heads[name].regression == head.regression
    kept = {k: v for k, v in whole.model.extras.items() if k not in ("fairseq", "langs")}
    assert kept == extras
    assert whole.text.dictionary == text.dictionary
    assert whole.text.dictionary.symbols == text.dictionary.symbols
    assert whole.text.tokenizer_class == text.tokenizer_class
    assert whole.text.encode_batch(TEXTS) == text.encode_batch(TEXTS)
    ids = text.encode(TEXTS[0])
    assert whole.text.decode(ids) == text.decode(ids)
    if kind == "mbart" and ROUTES[route][-1][1] is from_fairseq:
        assert whole.model.extras["langs"][:2] == ["ar_AR", "cs_CZ"]
