"""Checkpoints that the real fairseq wrote (`tools/goldens/checkpoints.py`) give its numbers."""

import jax
import numpy as np
import pytest

from bart_hk.checkpoint.fairseq_file import TASK_HEAD, read_fairseq, write_fairseq
from bart_hk.config import BARTConfig
from bart_hk.hub import BARTHubInterface
from bart_hk.model import BART
from bart_hk.torch_format import read_torch
from tests.conftest import GOLDENS

CHECKPOINTS = ["trained", "half_2019", "omegaconf", "heads", "mbart"]
DTYPES = {"half_2019": "float16", "omegaconf": "bfloat16"}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_logits_and_heads(golden, name):
    cases = golden("checkpoints/cases.json")
    model = read_fairseq(GOLDENS / "checkpoints" / f"{name}.pt")
    assert model.config == BARTConfig(**cases["cases"][name]["config"])
    dtypes = {str(a.dtype) for a in jax.tree.leaves(model.params)}
    assert dtypes == {DTYPES.get(name, "float32")}
    hub = BARTHubInterface(model.config, model.params, heads=model.heads)
    expected = golden(f"checkpoints/{name}.safetensors")
    bart, ids = BART(model.config), [np.array(cases[key]) for key in ("ids", "prev_output_tokens")]
    features = bart.decode(hub.params, ids[1], bart.encode(hub.params, ids[0])).features
    logits = bart.project(hub.params, features)
    real = ids[1] != 1
    np.testing.assert_allclose(
        np.asarray(logits)[real], expected["logits"][real], rtol=1e-5, atol=1e-5
    )
    assert np.std(expected["logits"]) > 0.05
    heads = {key.removeprefix("heads/") for key in expected if key != "logits"}
    assert heads == set(hub.heads) == ({TASK_HEAD, "wide"} if name == "heads" else set())
    for head in heads:
        ours = hub.predict(head, ids[0], return_logits=True)
        np.testing.assert_allclose(ours, expected[f"heads/{head}"], rtol=1e-5, atol=1e-5)


def test_what_they_are_called():
    extras = {
        name: read_fairseq(GOLDENS / "checkpoints" / f"{name}.pt").extras for name in CHECKPOINTS
    }
    tasks = {name: about["fairseq"]["task"] for name, about in extras.items()}
    assert tasks == {
        "trained": "denoising",
        "half_2019": "denoising",
        "omegaconf": "denoising",
        "heads": "sentence_prediction",
        "mbart": "multilingual_denoising",
    }
    assert extras["mbart"]["langs"] == ["en_XX", "ro_RO"]
    assert extras["trained"]["fairseq"]["arch"] == "bart_base"
    # How long rows are is the task's to say, where it has an option for that.
    assert {name: about.get("max_positions") for name, about in extras.items()} == {
        **dict.fromkeys(extras),
        "heads": 512,
    }


def test_a_training_checkpoint_still_has_its_optimizer():
    """So that leaving it unread is worth something."""
    whole = read_torch(GOLDENS / "checkpoints" / "trained.pt")
    size = sum(tensor.nbytes for tensor in whole["model"].values())
    moments = [
        s[k]
        for s in whole["last_optimizer_state"]["state"].values()
        for k in ("exp_avg", "exp_avg_sq")
    ]
    assert sum(m.nbytes for m in moments) > size


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_their_tensors_come_back_bit_for_bit(tmp_path, name):
    path = GOLDENS / "checkpoints" / f"{name}.pt"
    model = read_fairseq(path)
    write_fairseq(tmp_path, model.config, model.params, model.heads, extras=model.extras)
    again = read_fairseq(tmp_path / "model.pt")
    assert again.config == model.config and again.extras.get("langs") == model.extras.get("langs")
    stored, back = read_torch(path)["model"], read_torch(tmp_path / "model.pt")["model"]
    shared = stored.keys() & back.keys()
    assert len(shared) > 40
    for key in shared - {"encoder.version", "decoder.version"}:
        assert back[key].dtype == stored[key].dtype and back[key].shape == stored[key].shape
        assert back[key].tobytes() == stored[key].tobytes(), key
    if name != "half_2019":
        assert back.keys() == stored.keys()
