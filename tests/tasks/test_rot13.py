"""rot13: words of one's own making, and the whole way from nothing to their exact decryption."""

import copy

import numpy as np
import pytest

import bart_hk
from bart_hk.config import BARTConfig
from bart_hk.data.readers import DataError
from bart_hk.tasks.losses import CrossEntropyConfig
from bart_hk.tasks.rot13 import LETTERS, Rot13, Rot13Config, rotate
from bart_hk.text import train_characters

ENCODER = train_characters([LETTERS])
MODEL = BARTConfig(vocab_size=31, max_source_positions=16, max_target_positions=16)


def made(**options) -> Rot13:
    config = Rot13Config(**{"words": 300, "valid_words": 50, "seed": 1} | options)
    task = Rot13(config, CrossEntropyConfig())
    task.encode(ENCODER, MODEL)
    return task


def words(split) -> list[str]:
    """The targets, after making sure that the sources are them, enciphered."""
    targets = [ENCODER.decode(row) for row in split.targets]
    sources = [ENCODER.decode(row) for row in split.sources]
    assert [rotate(word) for word in targets] == sources
    return targets


def test_rot13_is_its_own_inverse():
    assert rotate("hello") == "uryyb" and rotate(rotate(LETTERS)) == LETTERS
    assert rotate("xyz", 3) == "abc"


def test_words_are_new_in_every_epoch_and_never_validated_on():
    task = made()
    held = words(task.valid)
    assert len(set(held)) == 50 and 4 <= min(map(len, held)) <= max(map(len, held)) == 12
    epochs = []
    for epoch in (1, 2, 1):
        task.begin_epoch(epoch)
        epochs.append(words(task.train))
    assert epochs[0] == epochs[2] != epochs[1] and len(epochs[0]) == 300
    assert {len(word) for word in epochs[0]} == set(range(1, 13))
    assert words(made().valid) == held != words(made(seed=2).valid)
    short = made(longest=2, valid_words=300)  # of the 676 pairs that there are
    held = set(words(short.valid))
    assert len(held) == 300 and not held & set(words(short.train))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"words": 0}, "task.words=0 must be at least 1"),
        ({"data": "x"}, "task=rot13 makes its words: leave task.data, train and valid out"),
        (
            {"longest": 1, "valid_words": 14},
            "task.valid_words=14 is more than half of the 26 words",
        ),
        ({"longest": 15}, "its source has 17 tokens, and 16 is the limit"),
    ],
)
def test_what_cannot_be_is_one_line(options, what):
    with pytest.raises(DataError, match=what) as error:
        made(**options)
    assert "\n" not in str(error.value)


TINY = {
    "task": {"_name": "rot13", "longest": 3, "words": 3072, "valid_words": 200},
    "model": {
        "_name": "bart_base",
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 32,
        "decoder_ffn_embed_dim": 32,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "encoder_learned_pos": False,
        "decoder_learned_pos": False,
        "no_scale_embedding": False,
        "max_source_positions": 8,
        "max_target_positions": 8,
        "dropout": 0.0,
    },
    "criterion": "cross_entropy",
    "lr_scheduler": {"_name": "cosine", "warmup_updates": 30},
    "dataset": {"batch_size": 64, "batch_size_valid": 200, "length_buckets": [8]},
    "optimization": {"lr": 1e-2, "max_epoch": 8, "clip_norm": 1.0},
    "common": {"no_progress_bar": True},
}


def test_from_nothing_to_exact_decryption(tmp_path):
    """Trainer, hub and generator from end to end; `experiment=rot13` is the same at full size."""
    config = copy.deepcopy(TINY)
    config["checkpoint"] = {"save_dir": str(tmp_path), "best_checkpoint_metric": "exact_match"}
    config["optimization"]["max_epoch"] = 12  # with 8 it is 94 with one XLA
    config["dataset"]["validate_interval"] = 12
    config["checkpoint"]["save_interval"] = 12
    config["task"]["generation"] = {"beam": 1, "max_len_b": 6}
    assert bart_hk.train(config).valid["exact_match"] == 100
    bart = bart_hk.load(tmp_path)
    secrets = ["fun", "cat", "owl"]
    assert bart.sample([rotate(word) for word in secrets]) == secrets
    assert bart.sample(rotate("emu"), beam=4) == "emu"
    weights = bart.attention(rotate("owl"), "owl").cross[0].mean(0)  # [T, S]
    # It has learnt where to look: what it writes is where it reads.
    assert (np.argmax(weights[1:4], -1) == [1, 2, 3]).sum() >= 2
