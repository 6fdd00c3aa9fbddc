"""What a run takes over from another: fairseq's reset_* options, one by one."""

import os
import shutil
import signal
import threading

import jax
import numpy as np
import pytest

from bart_hk.training import loop
from bart_hk.training.config import ConfigError, complete
from bart_hk.training.loader import Loaded
from bart_hk.training.loop import train
from tests.training.conftest import final_bytes, logged, write_sentences

FIXED = {"lr_scheduler": {"_name": "inverse_sqrt", "warmup_updates": 3}}
KEEP = dict.fromkeys(
    ("reset_optimizer", "reset_lr_scheduler", "reset_dataloader", "reset_meters"), False
)


@pytest.fixture(scope="module")
def runs(configured, tmp_path_factory):
    """Two directories: of three epochs, and of a run that was stopped within the second."""
    folder = tmp_path_factory.mktemp("runs")
    train(configured(folder / "whole", **FIXED, common={"log_interval": 4}))
    plain = loop.Run._update

    def update(self: loop.Run, made: Loaded) -> None:
        plain(self, made)
        if self.progress.update == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(loop.Run, "_update", update)
        train(configured(folder / "part", **FIXED, common={"log_interval": 4}))
    return folder


def begun(configured, runs, folder, **changes) -> loop.Run:
    """A run before its first update; `changes` as of `configured`, those of checkpoint plain."""
    checkpoint = {"restore_file": str(runs / "part")} | changes.pop("checkpoint", {})
    changes = FIXED | {"common": {"log_interval": 4}, "task": {"vocab_size": None}} | changes
    config = complete(configured(folder, checkpoint=checkpoint, **changes))
    with loop.state.locked(folder / "training"):
        run = loop.Run(config, folder, threading.Event())
        run.log.close()
        return run


def stored(folder) -> dict[str, np.ndarray]:
    arrays, progress = loop.state.peek(folder / "training")
    return arrays | {"progress": progress}


def leaves(tree) -> dict[str, np.ndarray]:
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in pairs}


def equal(tree, arrays, part: str) -> bool:
    names = [name for name in tree if name.startswith(f"['{part}']")]
    assert names
    return all(np.array_equal(tree[name], arrays[name]) for name in names)


def test_with_none_reset_it_is_the_run_that_went_on(configured, runs, tmp_path):
    config = configured(
        tmp_path / "run",
        **FIXED,
        task={"vocab_size": None},
        common={"log_interval": 4},
        checkpoint={"restore_file": str(runs / "part"), **KEEP},
    )
    result = train(config)
    whole = logged(runs / "whole")
    assert result.update == whole[-1]["update"]
    arrays, expected = stored(tmp_path / "run"), stored(runs / "whole")
    for name in expected.keys() - {"progress"}:
        np.testing.assert_array_equal(arrays[name], expected[name])
    # It goes on with what waited to be logged, too (9 updates were done, 8 of them logged).
    lines = logged(tmp_path / "run")
    assert lines == whole[-len(lines) :] and 0 < len(lines) < len(whole)
    assert final_bytes(tmp_path / "run") == final_bytes(runs / "whole")


def test_by_default_it_begins_with_the_model_alone(configured, runs, tmp_path):
    run = begun(configured, runs, tmp_path / "run")
    assert run.progress == loop.Progress()
    assert not any(a.any() for n, a in leaves(run.state).items() if n.startswith("['optimizer']"))


def test_the_optimizer_alone(configured, runs, tmp_path):
    """Moments and bias correction go on; updates, epochs and what is best begin."""
    run = begun(configured, runs, tmp_path / "run", checkpoint={"reset_optimizer": False})
    tree, old = leaves(run.state), stored(runs / "part")
    assert equal(tree, old, "params")
    moments = [n for n in tree if ".mu" in n or ".nu" in n]
    assert moments and all(np.array_equal(tree[n], old[n]) for n in moments)
    assert tree["['optimizer'][0].count"] == 9 and tree["['optimizer'][2].count"] == 0
    assert run.progress == loop.Progress()


def test_the_optimizer_and_the_schedule(configured, runs, tmp_path):
    kept = {"reset_optimizer": False, "reset_lr_scheduler": False}
    run = begun(configured, runs, tmp_path / "run", checkpoint=kept)
    assert equal(leaves(run.state), stored(runs / "part"), "optimizer")
    assert run.progress == loop.Progress(update=9)


def test_an_optimizer_that_is_reset_resets_the_schedule(configured, runs, tmp_path):
    run = begun(configured, runs, tmp_path / "run", checkpoint={"reset_lr_scheduler": False})
    tree = leaves(run.state)
    assert equal(tree, stored(runs / "part"), "params")
    assert not any(a.any() for n, a in tree.items() if n.startswith("['optimizer']"))
    assert run.progress.update == 0


def test_the_place_in_the_data(configured, runs, tmp_path, sentences):
    run = begun(configured, runs, tmp_path / "run", checkpoint={"reset_dataloader": False})
    old = stored(runs / "part")["progress"]
    assert (run.progress.epoch, run.progress.batch) == (old["epoch"], old["batch"]) == (2, 3)
    assert run.progress.update == 0
    (tmp_path / "valid.tsv").write_bytes((sentences / "valid.tsv").read_bytes())
    write_sentences(tmp_path / "train.tsv", 96, seed=5)
    for changes, key in (
        ({"task": {"vocab_size": None, "data": str(tmp_path)}}, "the data of task.train=.*"),
        ({"dataset": {"batch_size": 8}}, "dataset.batch_size=16, and now it is 8"),
        ({"common": {"seed": 2}}, "common.seed=1, and now it is 2"),
    ):
        with pytest.raises(ConfigError, match=f"reset_dataloader=false goes on .* had {key}"):
            kept = {"reset_dataloader": False}
            begun(configured, runs, tmp_path / "other", checkpoint=kept, **changes)


def test_what_was_best(configured, runs, tmp_path):
    kept = {"reset_meters": False, "reset_optimizer": False}
    run = begun(configured, runs, tmp_path / "run", checkpoint=kept)
    old = stored(runs / "part")["progress"]
    assert (run.progress.best, run.progress.valid) == (old["best"], old["valid"])
    assert run.progress.best is not None
    for name in ("model.safetensors", "heads.safetensors", "vocab.json", "config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (runs / "part" / name).read_bytes()
    run = begun(configured, runs, tmp_path / "again", checkpoint={"reset_meters": False})
    assert run.progress.best is None  # as in fairseq
    assert not (tmp_path / "again" / "config.json").exists()


def test_an_average_that_the_other_run_lacks_begins_as_a_copy(configured, runs, tmp_path):
    """fairseq: KeyError."""
    run = begun(
        configured,
        runs,
        tmp_path / "run",
        checkpoint={"reset_optimizer": False},
        ema={"store_ema": True},
    )
    for ours, copied in zip(
        jax.tree.leaves(run.state["params"]), jax.tree.leaves(run.state["ema"]), strict=True
    ):
        np.testing.assert_array_equal(ours, copied)


def test_what_there_must_be(configured, runs, tmp_path):
    kept = {"reset_optimizer": False}
    with pytest.raises(ConfigError, match="reset_optimizer=false needs checkpoint.restore_file"):
        train(configured(tmp_path / "a", checkpoint=kept))
    shutil.copytree(runs / "part", tmp_path / "model", ignore=lambda *_: ["training"])
    with pytest.raises(ConfigError, match="asks for a training state, and checkpoint.restore_fi"):
        kept |= {"restore_file": str(tmp_path / "model")}
        begun(configured, runs, tmp_path / "b", checkpoint=kept)
    # A state that is damaged stays where it is, for it is another run's.
    shutil.copytree(runs / "part", tmp_path / "damaged")
    paths = list((tmp_path / "damaged" / "training").glob("update_*"))
    for path in paths:
        (path / "arrays" / "_METADATA").write_bytes(b"")
    with pytest.raises(ValueError, match="every state in .* is damaged; begin with its model"):
        kept |= {"restore_file": str(tmp_path / "damaged")}
        begun(configured, runs, tmp_path / "c", checkpoint=kept)
    assert all(path.exists() for path in paths)


def test_a_state_of_another_model(configured, runs, tmp_path, monkeypatch):
    shutil.copytree(runs / "part", tmp_path / "odd")
    folder = tmp_path / "odd" / "training"
    arrays, progress = loop.state.peek(folder)
    name = "['params']['model']['embed_tokens']['embeddings']"
    arrays[name] = arrays[name][:-1]
    monkeypatch.setattr(loop.state, "_named_leaves", lambda tree: list(tree.items()))
    loop.state.save(folder, 1000, arrays, progress)
    monkeypatch.undo()
    kept = {"reset_optimizer": False, "restore_file": str(tmp_path / "odd")}
    with pytest.raises(ConfigError, match=r"does not fit: .*embed_tokens.* has shape \(279, 16\)"):
        begun(configured, runs, tmp_path / "run", checkpoint=kept)
