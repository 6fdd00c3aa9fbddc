"""Causal language modelling: texts and stores become windows that hang together."""

import jax
import numpy as np
import pytest

from bart_hk.config import BARTConfig
from bart_hk.data.documents import find_files
from bart_hk.data.preprocessing import preprocess
from bart_hk.data.readers import DataError
from bart_hk.model import BART
from bart_hk.tasks.language_modeling import LanguageModeling, LanguageModelingConfig
from bart_hk.tasks.losses import CrossEntropyConfig
from bart_hk.text import train_bpe, train_characters
from tests.parameters import random_params

LINES = ["to be or not to be", "that is the question", "", "whether it is nobler"]
TEXT = "\n".join(LINES) + "\n"
ENCODER = train_characters(LINES)
MODEL = BARTConfig(
    flavour="decoder_only",
    vocab_size=len(ENCODER.dictionary),
    encoder_embed_dim=8,
    decoder_ffn_embed_dim=8,
    decoder_layers=1,
    decoder_attention_heads=2,
    max_source_positions=16,
    max_target_positions=16,
)
EOS = MODEL.eos_token_id
STREAM = [token for line in LINES if line for token in (*ENCODER.encode(line), EOS)]


def made(**options) -> LanguageModeling:
    config = LanguageModelingConfig(**{"tokens_per_sample": 10, "seed": 1} | options)
    return LanguageModeling(config, CrossEntropyConfig())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    (path / "train.txt").write_text(TEXT)
    (path / "valid.txt").write_text(LINES[1] + "\n")
    return path


@pytest.fixture
def task(folder):
    found = made(data=str(folder))
    found.encode(ENCODER, MODEL)
    return found


def whole(split) -> tuple[list[int], list[int]]:
    """What the decoder reads and writes, padding left out, window after window."""
    batch = split.batch(np.arange(len(split.lengths)), 10, len(split.lengths) + 1)
    real = batch["target"] != MODEL.pad_token_id
    assert (real.sum(1)[:-1] == split.lengths).all() and not real[-1].any()
    assert all(array.dtype == np.int32 for array in batch.values())
    return batch["prev_output_tokens"][real].tolist(), batch["target"][real].tolist()


def test_every_token_is_predicted_once_from_the_one_before_it(task):
    for epoch in range(1, 6):
        task.begin_epoch(epoch)
        previous, target = whole(task.train)
        assert target == STREAM and previous == [EOS, *STREAM[:-1]]
        assert task.train.lengths.max() <= 10
    assert whole(task.valid)[1] == [*ENCODER.encode(LINES[1]), EOS]


def test_cuts_are_an_epochs_own(task):
    cuts = []
    for epoch in (1, 2, 3, 4, 1):
        task.begin_epoch(epoch)
        cuts.append(task.train.lengths.tolist())
    assert cuts[0] == cuts[-1] and len(set(map(tuple, cuts))) > 2
    valid = task.valid.lengths.tolist()
    assert valid == [10, 10, 1]  # always the same
    assert task.train.where([0, 1]).endswith(f"train.txt, tokens from 0, {cuts[-1][0]}")


def test_a_store_gives_the_same_windows(tmp_path, folder):
    encoder = train_bpe(LINES * 5, 290)
    files = find_files([folder / "train.txt"])
    preprocess(files, tmp_path / "data", lambda: encoder, workers=1)
    model = MODEL.replace(vocab_size=len(encoder.dictionary))
    stored, read = made(data=str(tmp_path / "data")), made(train=str(folder / "train.txt"))
    rows = []
    for found in (stored, read):
        found.encode(encoder, model)
        found.begin_epoch(3)
        rows.append(whole(found.train))
    assert stored.tokenizer_folder == str(tmp_path / "data") and read.tokenizer_folder is None
    lines = [token for token in rows[0][1] if token != EOS]
    assert lines == [token for token in rows[1][1] if token != EOS] and len(lines) > 15
    with pytest.raises(DataError, match="the model's tokenizer has 20 symbols"):
        made(data=str(tmp_path / "data")).encode(ENCODER, MODEL)
    other = train_bpe(["quite another text, with many other words in it"] * 5, 300)
    with pytest.raises(DataError, match="data was made with another vocabulary: id "):
        made(data=str(tmp_path / "data")).encode(other, model)


def test_the_loss_is_that_of_the_decoder(task):
    bart, params = BART(MODEL), random_params(MODEL)
    batch = task.train.batch(np.arange(3), 10, 4)
    loss, sums = jax.jit(lambda p, b: task.loss(bart, {"model": p}, None, b))(params, batch)
    logits = bart.project(params, bart.decode(params, batch["prev_output_tokens"]).features)
    logp = np.asarray(jax.nn.log_softmax(logits))
    real = batch["target"] != MODEL.pad_token_id
    chosen = np.take_along_axis(logp, batch["target"][..., None], -1)[..., 0]
    np.testing.assert_allclose(loss, -chosen[real].sum(), rtol=1e-5)
    assert int(sums["count"]) == real.sum() == task.train.lengths[:3].sum()


def test_the_page_in_the_package():
    page = made(data="pkg://bart_hk.data/alice")
    lines = list(page.texts())
    assert lines[0].startswith("Alice was beginning to get very tired") and len(lines) == 24
    page.encode(train_characters(lines), MODEL.replace(vocab_size=70))
    assert (page.train.lengths.sum(), page.valid.lengths.sum()) == (11190, 1727)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "task.train is not set; give it a text file or a folder of them"),
        ({"tokens_per_sample": 0, "train": "x"}, "task.tokens_per_sample=0 must be at least 1"),
        ({"train": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"data": "here"}, "task.data=here has neither train.bin and train.idx nor a train.txt"),
        ({"data": "here", "train": "x"}, "give task.data or task.train and task.valid, not both"),
        ({"train": "empty.txt"}, "empty.txt holds no text"),
        ({"train": "empty.txt", "tokens_per_sample": 17}, "=17 is more than the model's 16 pos"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, monkeypatch, options, what):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(DataError, match=what) as error:
        made(**options).encode(ENCODER, MODEL)
    assert "\n" not in str(error.value)
