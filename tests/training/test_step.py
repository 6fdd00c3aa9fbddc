"""Updates that the real fairseq's Trainer made, made again."""

import numpy as np
import pytest

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
