"""Updates that the real fairseq's Trainer made, made again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bart_hk.training.step import Step
from tests.training.updates import check_case


@pytest.mark.parametrize("name", ["plain", "recipe", "sentences"])
def test_updates_criteria_and_averages_are_fairseqs(golden, name):
    case = golden("training/cases.json")["cases"][name]
    check_case(case, golden(f"training/{name}.safetensors"))


def test_fairseqs_own_average_moves_a_tied_table_once_for_each_of_its_names(golden):
    """Why the recorder patches it: with three names, 0.9 acts as 0.9 cubed."""
    arrays = golden("training/recipe.safetensors")
    name = "encoder.embed_tokens.weight"
    patched, unpatched, last = (arrays[f"{k}/{name}"] for k in ("ema", "ema_unpatched", "weights"))
    assert np.abs(patched - unpatched).max() > 1e-3
    assert np.abs(unpatched - last).mean() < np.abs(patched - last).mean()


def test_another_seed_runs_the_same_program():
    """So several seeds of a recipe compile it once, through the persistent cache."""

    def loss(params, key, batch):
        return jax.random.normal(key) * params["w"].sum(), {"count": batch["x"].size}

    programs, after = [], []
    for seed in (1, 1, 2):
        step = Step(loss, optax.sgd(1.0), 0.0, jax.random.key(seed))
        state, batch, key = step.init({"w": jnp.ones(2)}), {"x": jnp.ones(3)}, jax.random.key(seed)
        programs.append(step._whole.lower(state, key, jnp.int32(0), batch, ()).as_text())
        after.append(float(step.update(state, 0, [batch])[0]["params"]["w"][0]))
    assert programs[0] == programs[1] == programs[2]
    assert after[0] == after[1] != after[2]
