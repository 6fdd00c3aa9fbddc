"""Freezing, rates by layer and rates of heads: on arrays, and in a run."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bart_hk.checkpoint.huggingface import read_model
from bart_hk.training import optim
from bart_hk.training.config import ConfigError
from bart_hk.training.loop import train
from bart_hk.training.tuning import TuningConfig, check, frozen, rates, tuned, without_frozen

PARAMS = {
    "model": {
        "embed_tokens": {"embeddings": jnp.ones((3, 2))},
        "encoder/layers_0/fc1": {"w": jnp.ones((2, 2))},
        "encoder/layers_1/fc1": {"w": jnp.ones((2, 2))},
        "encoder/layer_norm": {"scale": jnp.ones(2)},
        "decoder/embed_positions": {"embeddings": jnp.ones((3, 2))},
        "decoder/layers_0/fc1": {"w": jnp.ones((2, 2))},
        "decoder/layer_norm": {"scale": jnp.ones(2)},
    },
    "head": {"out_proj": {"w": jnp.ones((2, 2))}},
}


def flat(tree):
    pairs = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(part.key) for part in path): value for path, value in pairs}


def test_rates_fall_from_the_head_to_the_embeddings():
    found = flat(rates(TuningConfig(layer_lr_decay=0.5, head_lr=3e-3), PARAMS, lr=1e-3))
    assert found == pytest.approx(
        {
            "model/embed_tokens/embeddings": 0.5**4,
            "model/encoder/layers_0/fc1/w": 0.5**3,
            "model/encoder/layers_1/fc1/w": 0.5**2,
            "model/encoder/layer_norm/scale": 0.5**2,
            "model/decoder/embed_positions/embeddings": 0.5**4,
            "model/decoder/layers_0/fc1/w": 0.5,
            "model/decoder/layer_norm/scale": 0.5,
            "head/out_proj/w": 3.0,
        }
    )


def test_every_part_has_a_depth():
    """Of a new encoder in front, and of a bottleneck."""
    names = [
        "source_encoder/embed_tokens",
        "source_encoder/layers_0/fc1",
        "encoder/layers_0/fc1",
        "bottleneck/from_latent",
        "decoder/layers_0/fc1",
        "decoder/layers_1/fc1",
    ]
    params = {"model": {name: {"w": jnp.ones(2)} for name in names}, "head": {}}
    found = flat(rates(TuningConfig(layer_lr_decay=0.5), params, lr=1e-3))
    powers = [5, 4, 3, 3, 2, 1]
    assert found == {f"model/{n}/w": 0.5**p for n, p in zip(names, powers, strict=True)}


def test_changes_are_the_optimizers_times_the_rates():
    config = TuningConfig(layer_lr_decay=0.5, head_lr=3e-3)
    adam = optim.optimizer(optim.AdamConfig(weight_decay=0.1), lambda n: 1e-3)
    grads = jax.tree.map(lambda a: jnp.arange(1.0, a.size + 1).reshape(a.shape), PARAMS)
    transform = tuned(config, adam, PARAMS, lr=1e-3)
    plain, found = (flat(t.update(grads, t.init(PARAMS), PARAMS)[0]) for t in (adam, transform))
    for name, rate in flat(rates(config, PARAMS, lr=1e-3)).items():
        assert (np.abs(plain[name]) > 9e-4).all()
        np.testing.assert_allclose(found[name], plain[name] * rate, rtol=1e-6, err_msg=name)


def test_frozen_parameters_stay_and_have_no_gradient():
    config = TuningConfig(freeze=["embed", "^model/encoder/"])
    stays = flat(frozen(config, PARAMS))
    assert [name for name, still in stays.items() if not still] == [
        "head/out_proj/w",
        "model/decoder/layer_norm/scale",
        "model/decoder/layers_0/fc1/w",
    ]
    loss = without_frozen(config, lambda p: sum(jnp.sum(a**2) for a in jax.tree.leaves(p)), PARAMS)
    grads = jax.grad(loss)(PARAMS)
    assert all((np.asarray(g) == 0).all() == stays[name] for name, g in flat(grads).items())
    # Weight decay would change them, too.
    adam = optim.optimizer(optim.AdamConfig(weight_decay=0.1), lambda n: 0.5)
    transform = tuned(config, adam, PARAMS, lr=0.5)
    changes, _ = transform.update(grads, transform.init(PARAMS), PARAMS)
    after = flat(optax.apply_updates(PARAMS, changes))
    before = flat(PARAMS)
    same = {name: bool((after[name] == before[name]).all()) for name in before}
    assert same == stays


def test_nothing_asked_is_nothing_changed():
    adam = optim.optimizer(optim.AdamConfig(), lambda n: 0.1)
    assert tuned(TuningConfig(), adam, PARAMS, 0.1) is adam

    def loss(params):
        return params

    assert without_frozen(TuningConfig(), loss, PARAMS) is loss


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TuningConfig(freeze=["("]), "'\\(' is no regular expression"),
        (TuningConfig(freeze=["nowhere"]), "'nowhere' is found in no parameter's name"),
        (TuningConfig(freeze=["."]), "nothing is left to learn"),
        (TuningConfig(layer_lr_decay=0.0), "layer_lr_decay=0.0 must be in"),
        (TuningConfig(head_lr=-1.0), "head_lr=-1.0 must not be negative"),
    ],
)
def test_bad_values(config, message):
    with pytest.raises(ValueError, match=message):
        check(config, 1e-3)
        rates(config, PARAMS, 1e-3)
    with pytest.raises(ValueError, match="head_lr=1.0: this task has no head"):
        rates(TuningConfig(head_lr=1.0), {"model": PARAMS["model"]}, 1e-3)


def test_a_run_with_a_frozen_body_trains_the_head_alone(configured, finished, tmp_path):
    body = read_model(finished).params
    changes = {
        "task": {"vocab_size": None},
        "checkpoint": {"restore_file": str(finished)},
        "optimization": {"max_epoch": 0, "max_update": 1},
        "tuning": {"freeze": ["^model/"], "head_lr": 0.1},
    }
    train(configured(tmp_path / "run", **changes))
    stored = read_model(tmp_path / "run" / "last")
    assert all(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(stored.params), jax.tree.leaves(body), strict=True)
    )
    name = "sentence_classification_head"
    old, new = read_model(finished).heads[name].params, stored.heads[name].params
    # Adam's first update changes what has a gradient by its rate, which is not that of the run.
    moved = [np.abs(new[layer]["w"] - old[layer]["w"]).max() for layer in old]
    assert moved == pytest.approx([0.1] * 2, rel=1e-3)
    changes["tuning"] = {"freeze": ["^model/nothing"]}
    with pytest.raises(ValueError, match="is found in no parameter's name"):
        train(configured(tmp_path / "other", **changes))
    with pytest.raises(ConfigError, match="layer_lr_decay=2.0 must be in"):
        train(configured(tmp_path / "third", tuning={"layer_lr_decay": 2.0}))
