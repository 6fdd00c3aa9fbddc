"""Translation through the training loop: what was learned is what the hub does."""

import json
import random

import pytest

import bart_hk
from bart_hk.checkpoint.huggingface import write_model
from bart_hk.tasks.translation import Translation
from bart_hk.training.config import ConfigError
from bart_hk.training.loop import train
from tests.parameters import random_params
from tests.tasks.test_translation import TABLE
from tests.tasks.test_translation_from_pretrained_bart import CONFIG, EN, LANGUAGES, RO

WORDS = {"ein": "a", "zwei": "two", "hund": "dog", "katze": "cat", "rot": "red"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Word by word translations, each word one token: train.tsv and dev.tsv."""
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(0)
    for name, count in (("train", 400), ("dev", 12)):
        rows = ["source\ttarget"]
        for _ in range(count):
            words = [draw.choice(list(WORDS)) for _ in range(draw.randint(1, 4))]
            rows.append(f"{' '.join(words)}\t{' '.join(WORDS[word] for word in words)}")
        (folder / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def config(texts, save_dir, epochs, **task):
    return {
        "task": {
            "_name": "translation",
            "data": str(texts),
            "vocab_size": 300,
            "eval_bleu": True,
            "eval_rouge": True,
            "generation": {"beam": 2, "max_len_b": 8},
            **task,
        },
        "model": {
            "_name": "bart_base",
            "encoder_embed_dim": 32,
            "encoder_ffn_embed_dim": 64,
            "decoder_ffn_embed_dim": 64,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "max_source_positions": 16,
            "max_target_positions": 16,
            "dropout": 0.0,
        },
        "criterion": {"_name": "label_smoothed_cross_entropy", "label_smoothing": 0.1},
        "dataset": {"batch_size": 32, "length_buckets": [16], "validate_interval": 20},
        "optimization": {"lr": 5e-3, "max_epoch": epochs},
        "common": {"no_progress_bar": True},
        "checkpoint": {"save_dir": str(save_dir), "best_checkpoint_metric": "bleu"},
    }


@pytest.mark.parametrize("prepend_bos", [True, False])
def test_the_hub_frames_texts_as_training_did(texts, tmp_path, monkeypatch, prepend_bos):
    written = []
    plain = Translation.hypotheses

    def kept(self, *args):
        found = plain(self, *args)
        written.append(found[0])
        return found

    monkeypatch.setattr(Translation, "hypotheses", kept)
    epochs = 40 if prepend_bos else 1
    result = train(config(texts, tmp_path / "run", epochs, prepend_bos=prepend_bos))
    assert set(result.valid) == {
        *("loss", "nll_loss", "ppl", "accuracy", "bleu", "rouge1", "rouge2", "rougeL", "rougeLsum")
    }
    bart = bart_hk.load(tmp_path / "run")
    ids = bart.encode("ein hund")
    assert bool(ids[0] == bart.config.bos_token_id) is prepend_bos
    sources = [line.split("\t")[0] for line in (texts / "dev.tsv").read_text().splitlines()[1:]]
    lines = (tmp_path / "run/log.jsonl").read_text().splitlines()
    scores = [json.loads(line)["bleu"] for line in lines if '"valid"' in line]
    best = written[scores.index(max(scores))]
    # The stored defaults are those of the evaluation; the beam is the method's own argument.
    assert bart.extras["generation"] == {"beam": 2, "max_len_b": 8}
    assert bart.sample(sources, beam=2) == best
    if prepend_bos:
        assert result.valid["bleu"] > 60 and "dog" in bart.sample("ein hund", beam=2)


def test_it_begins_with_a_stored_model_and_other_tasks_leave_it_alone(texts, tmp_path):
    first = train(
        config(texts, tmp_path / "one", 1, eval_bleu=False, eval_rouge=False)
        | {"checkpoint": {"save_dir": str(tmp_path / "one")}}
    )
    again = config(texts, tmp_path / "two", 1, eval_bleu=False, eval_rouge=False, vocab_size=None)
    again["checkpoint"] = {"save_dir": str(tmp_path / "two"), "restore_file": str(first.save_dir)}
    assert train(again).valid["loss"] < first.valid["loss"]


def test_a_metric_that_nobody_asked_for(texts, tmp_path):
    with pytest.raises(ConfigError, match="=bleu is not reported, only .*; more with task.eval_bl"):
        train(config(texts, tmp_path / "run", 1, eval_bleu=False))


def test_mbart_learns_texts_with_their_languages(tmp_path):
    """By heart, so that a frame that differs in training, validation or the hub is seen."""
    restored = CONFIG.replace(encoder_normalize_before=True, decoder_normalize_before=True)
    write_model(tmp_path / "mbart", restored, random_params(restored, 0.3), also=LANGUAGES.save)
    for name in ("train", "valid"):
        (tmp_path / f"{name}.tsv").write_text(TABLE)
    result = train(
        {
            "task": {
                "_name": "translation_from_pretrained_bart",
                "data": str(tmp_path),
                "source_lang": "en_XX",
                "target_lang": "ro_RO",
                "eval_bleu": True,
                "generation": {"beam": 1, "max_len_b": 16},
            },
            "model": {"dropout": 0.0},
            "dataset": {"batch_size": 3, "length_buckets": [20], "validate_interval": 1000},
            "optimization": {"lr": 1e-2, "max_epoch": 0, "max_update": 100},
            "lr_scheduler": "fixed",
            "common": {"no_progress_bar": True},
            "checkpoint": {
                "restore_file": str(tmp_path / "mbart"),
                "save_dir": str(tmp_path / "run"),
                "best_checkpoint_metric": "bleu",
                "save_interval": 1000,
            },
        }
    )
    assert result.update == 100 and result.valid["bleu"] == pytest.approx(100)
    bart = bart_hk.load(tmp_path / "run")
    assert bart.config.decoder_start_token_id == RO and bart.encode("aa")[-1] == EN
    sources, targets = zip(*(row.split("\t") for row in TABLE.splitlines()[1:]), strict=True)
    assert bart.sample(list(sources), beam=1) == list(targets)
