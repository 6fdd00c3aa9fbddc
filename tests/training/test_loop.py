import io
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bart_hk
from bart_hk.checkpoint.huggingface import read_model
from bart_hk.tasks.sentence_prediction import SentencePrediction
from bart_hk.training import loop
from bart_hk.training.config import ConfigError
from bart_hk.training.loop import train
from tests.training.conftest import MODEL, WITH_DROPOUT, final_bytes, logged, write_sentences


def leaves(folder: Path) -> list[np.ndarray]:
    stored = read_model(folder)
    heads = {name: head.params for name, head in stored.heads.items()}
    return jax.tree.leaves((stored.params, heads))


def test_it_learns_and_the_directory_is_a_model_with_its_label_names(configured, tmp_path):
    write_sentences(tmp_path / "train.tsv", 400, seed=0)
    write_sentences(tmp_path / "valid.tsv", 60, seed=1)
    changes = {"task": {"data": str(tmp_path)}, "optimization": {"max_epoch": 8}}
    result = train(configured(tmp_path / "run", **changes))
    assert result.epoch == 8 and result.valid["accuracy"] > 95
    bart = bart_hk.load(tmp_path / "run")
    answers = bart.classify(["the film was very good", "a bad plot"])
    assert [label for label, _ in answers] == ["pos", "neg"]
    assert bart.encode("a bad plot")[-1] == 2
    last = bart_hk.load(tmp_path / "run" / "last")
    assert last.classify(["of it is awful with a"])[0][0] == "neg"


def test_the_log(finished):
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["event"] == "train"]
    validated = [line for line in lines if line["event"] == "valid"]
    per_epoch = trained[-1]["update"] // 3
    assert [line["update"] for line in validated] == [per_epoch * i for i in (1, 2, 3)]
    assert sum(line["rows"] for line in trained) == 3 * 96  # every row once in each epoch
    assert {"loss", "accuracy", "gnorm", "lr", "tokens", "tokens_per_second"} <= set(trained[0])
    assert all(0 < line["padding"] < 1 and line["flops"] > 0 for line in trained)
    assert all(line["mfu"] > 0 for line in trained)
    assert {"loss", "accuracy", "best"} <= set(validated[0])
    best = min(validated, key=lambda line: line["loss"])
    about = json.loads((finished / "bart_hk.json").read_text())["training"]
    assert about["valid"]["loss"] == best["loss"]
    assert (
        json.loads((finished / "last/bart_hk.json").read_text())["training"]["update"]
        == (trained[-1]["update"])
    )


def test_the_seed_decides(configured, finished, tmp_path):
    short = {"max_update": 2}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(configured(tmp_path / name, optimization=short, common={"seed": seed}))
    a, b, c = (leaves(tmp_path / name) for name in "abc")
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(a, c, strict=True))


def test_a_step_compiles_once_per_length_bucket(configured, tmp_path, monkeypatch):
    traced = []
    plain = SentencePrediction.loss

    def counted(self, bart, params, key, batch):
        traced.append(batch["src_tokens"].shape)
        return plain(self, bart, params, key, batch)

    monkeypatch.setattr(SentencePrediction, "loss", counted)
    buckets = {"batch_size": 16, "length_buckets": [16, 40]}
    train(configured(tmp_path / "run", dataset=buckets))
    shapes = set(traced)
    assert {shape[1] for shape in shapes} == {16, 40}  # both buckets were in use
    assert len(shapes) == len(traced) == 2


def test_accumulating_batches_is_one_larger_batch(configured, tmp_path, sentences):
    """Sums and counts: the division comes after the last batch."""
    write_sentences(tmp_path / "few.tsv", 23, seed=2)
    common = {
        "task": {"data": None, "train": str(tmp_path / "few.tsv")},
        "model": MODEL,
    }
    for name, size, every in (("whole", 23, 1), ("parts", 8, 3)):
        changes = common | {
            "dataset": {"batch_size": size, "length_buckets": [40]},
            "optimization": {"update_freq": every, "max_epoch": 2, "lr": 1e-3},
            "lr_scheduler": {"_name": "fixed"},
        }
        result = train(configured(tmp_path / name, **changes))
        assert result.update == 2
    for whole, parts in zip(leaves(tmp_path / "whole"), leaves(tmp_path / "parts"), strict=True):
        np.testing.assert_allclose(whole, parts, atol=2e-5)


def test_the_average_is_what_is_validated_and_written(configured, tmp_path):
    average = {"store_ema": True, "ema_decay": 0.9}
    result = train(configured(tmp_path / "run", ema=average, optimization={"max_epoch": 1}))
    plain = train(configured(tmp_path / "plain", optimization={"max_epoch": 1}))
    assert result.valid["loss"] != plain.valid["loss"]
    stored, _ = loop.state.peek(tmp_path / "run" / "training")
    written = read_model(tmp_path / "run").params["encoder/layernorm_embedding"]["scale"]
    name = "['model']['encoder/layernorm_embedding']['scale']"
    np.testing.assert_array_equal(written, stored[f"['ema']{name}"])
    assert np.abs(written - stored[f"['params']{name}"]).max() > 1e-4
    last = read_model(tmp_path / "plain" / "last").params["encoder/layernorm_embedding"]["scale"]
    # It was trained all the same: to the bit whatever the decay, and without an average but for
    # the rounding of what is then another program.
    average["ema_decay"] = 0.5
    train(configured(tmp_path / "other", ema=average, optimization={"max_epoch": 1}))
    others, _ = loop.state.peek(tmp_path / "other" / "training")
    trained = [leaf for leaf in stored if leaf.startswith("['params']")]
    assert len(trained) > 20
    for leaf in trained:
        np.testing.assert_array_equal(others[leaf], stored[leaf])
    assert not np.array_equal(others[f"['ema']{name}"], stored[f"['ema']{name}"])
    np.testing.assert_allclose(last, stored[f"['params']{name}"], rtol=1e-6)


def test_a_criterion_of_another_task(configured, tmp_path):
    with pytest.raises(ConfigError, match="task=sentence_prediction has criterion=sentence_pred"):
        train(configured(tmp_path / "run", criterion={"_name": "cross_entropy"}))


def runs_seen(monkeypatch) -> list[loop.Run]:
    """Of each update, the run."""
    seen, plain = [], loop.Run._update

    def update(self: loop.Run, *given) -> None:
        seen.append(self)
        plain(self, *given)

    monkeypatch.setattr(loop.Run, "_update", update)
    return seen


def test_deep_options_train_the_same_model(configured, tmp_path, monkeypatch):
    seen = runs_seen(monkeypatch)
    deep = {"checkpoint_activations": True, "stack_layers": True}
    quiet = {"model": MODEL | {"encoder_layers": 2, "decoder_layers": 2}}
    for name, options in (("plain", {}), ("deep", deep)):
        limits = {"max_update": 4, "lr": 1e-3, **options}
        train(configured(tmp_path / name, optimization=limits, **quiet))
    for run, asked in ((seen[0], False), (seen[-1], True)):
        assert (run.bart.checkpoint_activations, run.bart.stack_layers) == (asked, asked)
    for plain, other in zip(leaves(tmp_path / "plain"), leaves(tmp_path / "deep"), strict=True):
        np.testing.assert_allclose(plain, other, atol=2e-5)


def test_without_validation_the_last_model_is_the_result(configured, sentences, tmp_path, caplog):
    task = {"data": None, "train": str(sentences / "train.tsv")}
    result = train(configured(tmp_path / "run", task=task, optimization={"max_update": 3}))
    assert (result.update, result.valid) == (3, {})
    assert caplog.messages.count(
        "nothing is validated: there is no text for it; the last model is kept"
    )
    about = json.loads((tmp_path / "run/bart_hk.json").read_text())["training"]
    assert about == {"update": 3, "task": "sentence_prediction"}
    assert not (tmp_path / "run/last").exists()


def test_patience_ends_a_run_and_the_best_model_stays(configured, tmp_path):
    # With a rate this high the first validation is the best there will be; or nearly.
    changes = {"checkpoint": {"patience": 2}, "optimization": {"lr": 0.0, "max_epoch": 9}}
    result = train(configured(tmp_path / "run", **changes))
    validated = [line for line in logged(tmp_path / "run") if line["event"] == "valid"]
    assert [line["best"] for line in validated] == [True, False, False]
    assert result.epoch == 3


def test_the_best_by_another_metric(configured, tmp_path):
    changes = {
        "checkpoint": {"best_checkpoint_metric": "mcc"},
        "criterion": {"report_mcc": True, "report_acc_and_f1": True},
    }
    result = train(configured(tmp_path / "run", **changes))
    validated = [line for line in logged(tmp_path / "run") if line["event"] == "valid"]
    assert {"f1", "acc_and_f1", "mcc"} <= set(validated[0])
    assert result.valid["mcc"] == max(line["mcc"] for line in validated)
    with pytest.raises(ConfigError, match="=f1 is not reported, only loss, .*; more with crit"):
        train(configured(tmp_path / "other", checkpoint={"best_checkpoint_metric": "f1"}))


def test_regression_on_pairs(configured, tmp_path):
    rows = ["sentence1\tsentence2\tscore"]
    numbers = "one two three four five".split()
    for i in range(80):
        a, b = i % 5, (i * 3 + i // 5) % 5
        rows.append(f"{numbers[a]}\t{numbers[b]} film\t{a + 0.5 * b}")
    (tmp_path / "pairs.tsv").write_text("\n".join(rows) + "\n")
    changes = {
        "task": {"data": None, "train": str(tmp_path / "pairs.tsv")}
        | {"valid": str(tmp_path / "pairs.tsv")},
        "criterion": {"regression_target": True, "report_pearson_and_spearman": True},
        "optimization": {"max_epoch": 40},
    }
    result = train(configured(tmp_path / "run", **changes))
    assert result.valid["pearson"] > 95 and result.valid["spearman"] > 95
    stored = read_model(tmp_path / "run")
    head = stored.heads["sentence_classification_head"]
    assert head.regression and head.num_classes == 1
    assert stored.extras["sentence_prediction"] == {  # by which others are read
        "text_columns": ["sentence1", "sentence2"],
        **{"label_column": "score", "label_divisor": 1.0},
    }


def test_a_restored_model_brings_its_architecture_and_its_head(configured, finished, tmp_path):
    changes = {
        "checkpoint": {"restore_file": str(finished)},
        "task": {"vocab_size": None},
        "model": {"_name": "bart_large", "dropout": 0.25},
        "optimization": {"lr": 0.0, "max_epoch": 1},
    }
    config = configured(tmp_path / "run", **changes)
    config["model"] = changes["model"]
    train(config)
    before, after = read_model(finished), read_model(tmp_path / "run")
    assert after.config == before.config.replace(dropout=0.25)
    for x, y in zip(leaves(finished), leaves(tmp_path / "run"), strict=True):
        np.testing.assert_array_equal(x, y)  # with a rate of 0 nothing has moved
    assert (tmp_path / "run/vocab.json").read_bytes() == (finished / "vocab.json").read_bytes()


def test_a_restored_head_keeps_its_order_of_classes(configured, finished, sentences, tmp_path):
    """The order of the head's outputs wins over the alphabet."""
    relabelled = tmp_path / "relabelled"
    stored = read_model(finished)
    head = stored.heads["sentence_classification_head"]
    head.labels = head.labels[::-1]
    from bart_hk.checkpoint.huggingface import write_model
    from bart_hk.text import TextEncoder

    write_model(
        relabelled, stored.config, stored.params, stored.heads, also=TextEncoder.load(finished).save
    )
    found = {}
    for name, source in (("same", finished), ("turned", relabelled)):
        changes = {
            "checkpoint": {"restore_file": str(source)},
            "task": {"vocab_size": None},
            "optimization": {"lr": 0.0, "max_epoch": 1},
        }
        found[name] = train(configured(tmp_path / name, **changes)).valid["accuracy"]
    assert found["turned"] == pytest.approx(100 - found["same"])
    labels = read_model(tmp_path / "turned").heads["sentence_classification_head"].labels
    assert labels == ["pos", "neg"]


def test_other_classes_get_a_new_head_where_asked(configured, finished, tmp_path):
    lines = [f"a film\t{c}" for c in "abc"] * 8
    (tmp_path / "three.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    changes = {
        "checkpoint": {"restore_file": str(finished), "reset_heads": True},
        "task": {"vocab_size": None, "data": None, "train": str(tmp_path / "three.tsv")},
        "optimization": {"max_epoch": 1},
    }
    train(configured(tmp_path / "run", **changes))
    head = read_model(tmp_path / "run").heads["sentence_classification_head"]
    assert head.labels == ["a", "b", "c"] and head.num_classes == 3


def test_bfloat16_computes_but_does_not_store(configured, tmp_path, monkeypatch):
    seen = runs_seen(monkeypatch)
    result = train(configured(tmp_path / "run", common={"bf16": True}))
    assert np.isfinite(result.valid["loss"]) and seen[0].bart.dtype == np.dtype(jnp.bfloat16)
    kept = {leaf.dtype for leaf in jax.tree.leaves(seen[0].state) if leaf.ndim}
    assert kept == {np.dtype(np.float32)}  # parameters and moments
    assert {a.dtype for a in leaves(tmp_path / "run")} == {np.dtype(np.float32)}


def test_tensorboard(configured, tmp_path):
    folder = tmp_path / "events"
    train(
        configured(
            tmp_path / "run",
            common={"tensorboard_logdir": str(folder)},
            optimization={"max_update": 2},
        )
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "train/lr", "valid/accuracy"} <= set(events.Tags()["scalars"])
    line = next(x for x in logged(tmp_path / "run") if x["event"] == "valid")
    assert events.Scalars("valid/loss")[0].value == pytest.approx(line["loss"])


def test_a_loss_that_is_not_finite_names_update_and_lines(configured, tmp_path, sentences):
    changes = {"optimization": {"lr": 1e30}, "lr_scheduler": {"_name": "fixed"}}
    with pytest.raises(FloatingPointError) as error:
        train(configured(tmp_path / "run", **changes))
    message = str(error.value)
    found = re.match(r"the (loss|gradient norm) of update (\d) is (nan|inf); its batch: ", message)
    assert found and 1 < int(found[2]) <= 3
    assert f"{sentences / 'train.tsv'}, lines " in message and "\n" not in message
    # Nothing of it was saved.
    assert not list((tmp_path / "run/training").glob("update_*"))


def test_what_ends_a_run_must_be_said(configured, tmp_path):
    with pytest.raises(ConfigError, match="nothing ends this run"):
        train(configured(tmp_path / "run", optimization={"max_epoch": 0}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimization": {"lr": 2e-3}}, "optimization.lr=0.01, now it is 0.002"),
        ({"common": {"seed": 7}}, "common.seed=1, now it is 7"),
        ({"optimization": {"max_epoch": 5}}, "the number of updates=.*, now it is"),
        ({"model": MODEL | {"dropout": 0.2}}, "model.dropout=0.1, now it is 0.2"),
    ],
)
def test_another_config_does_not_go_on_with_a_run(configured, finished, changes, message):
    changes = {"checkpoint": {"save_interval_updates": 2}} | WITH_DROPOUT | changes
    with pytest.raises(ConfigError, match=message):
        train(configured(finished, **changes))


def test_other_data_do_not_go_on_with_a_run(configured, finished, sentences, tmp_path):
    (tmp_path / "valid.tsv").write_bytes((sentences / "valid.tsv").read_bytes())
    write_sentences(tmp_path / "train.tsv", 96, seed=5)
    with pytest.raises(ConfigError, match="the data of task.train="):
        train(configured(finished, **WITH_DROPOUT, task={"data": str(tmp_path)}))


def test_where_the_data_are_does_not_matter(configured, finished, sentences, tmp_path):
    before = final_bytes(finished)
    for name in ("train.tsv", "valid.tsv"):
        (tmp_path / name).write_bytes((sentences / name).read_bytes())
    train(
        configured(finished, **WITH_DROPOUT, task={"data": str(tmp_path)})
    )  # finished already: nothing changes
    assert final_bytes(finished) == before


def test_a_model_in_save_dir_is_not_overwritten(configured, finished, tmp_path):
    with pytest.raises(ConfigError, match="holds a model that no run of it wrote"):
        train(configured(finished / "last"))


def test_two_runs_do_not_share_a_directory(configured, tmp_path):
    with loop.state.locked(tmp_path / "run" / "training"):
        with pytest.raises(ValueError, match="is in use by another run"):
            train(configured(tmp_path / "run"))


def test_tokenizer_options(configured, finished, tmp_path):
    restored = {"checkpoint": {"restore_file": str(finished)}}
    with pytest.raises(ConfigError, match="brings its own tokenizer"):
        train(configured(tmp_path / "a", **restored))
    with pytest.raises(ConfigError, match="task.tokenizer or task.vocab_size, not both"):
        train(configured(tmp_path / "b", task={"tokenizer": str(finished)}))
    changes = {"task": {"vocab_size": None, "tokenizer": str(finished)}}
    train(configured(tmp_path / "c", **changes, optimization={"max_update": 1}))
    assert (tmp_path / "c/vocab.json").read_bytes() == (finished / "vocab.json").read_bytes()


class Terminal(io.StringIO):
    """What looks like a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("silenced", [False, True])
def test_a_progress_bar_is_on_terminals_unless_it_is_not_wanted(
    configured, tmp_path, monkeypatch, silenced
):
    monkeypatch.setattr("sys.stderr", Terminal())
    config = configured(
        tmp_path, common={"no_progress_bar": silenced}, optimization={"max_update": 2}
    )
    train(config)
    assert ("epoch 1" in sys.stderr.getvalue()) is not silenced
    assert silenced or "/6 [" in sys.stderr.getvalue()  # of the epoch's updates
