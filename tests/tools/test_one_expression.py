"""The one expression is one expression, and equal to the model."""

import ast

import jax
import numpy as np
import pytest

from bart_hk.config import architecture
from bart_hk.model import BART
from tests.parameters import random_params
from tests.tools.test_parameter_layouts import ROOT, tool

IDS = np.array([[0, 8, 9, 11, 2], [0, 7, 2, 1, 1]])
PREVIOUS = np.array([[2, 0, 7, 11, 13, 5], [2, 0, 6, 1, 1, 1]])


def test_it_is_one_expression():
    path = ROOT / "tools" / "one_expression.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (assigned,) = (node for node in tree.body if isinstance(node, ast.AnnAssign))
    assert isinstance(assigned.value, ast.Call) and isinstance(assigned.value.args[0], ast.Lambda)
    named = {node.id for node in ast.walk(assigned.value) if isinstance(node, ast.Name)}
    assert {"jax", "jnp", "reduce", "params"} <= named and "bart_hk" not in named


@pytest.mark.parametrize(
    "fields",
    [
        {},  # bart-base itself
        {"encoder_layers": 2, "decoder_layers": 3, "decoder_attention_heads": 1, "vocab_size": 40}
        | {"encoder_embed_dim": 64, "encoder_attention_heads": 1},
    ],
    ids=["bart-base", "small"],
)
def test_it_is_the_model(fields):
    fields = {"vocab_size": 1000, **fields}  # rows that are not looked up change nothing
    config = architecture("bart_base", **fields)
    bart, params = BART(config), random_params(config, 0.03)

    @jax.jit
    def run(params):
        features = bart.decode(params, PREVIOUS, bart.encode(params, IDS)).features
        return bart.project(params, features)

    forward = tool("one_expression").FORWARD
    found, expected = np.asarray(forward(params, IDS, PREVIOUS)), np.asarray(run(params))
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
