"""Layers that are stacked or computed again give what the plain network gives."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.config import BARTConfig
from bart_hk.model import BART
from bart_hk.tasks.losses import LabelSmoothedCrossEntropyConfig, sequence_loss
from tests.model.test_bart import VARIANTS, rows
from tests.parameters import random_params

OPTIONS = {
    "stacked": {"stack_layers": True},
    "recomputed": {"checkpoint_activations": True},
    "both": {"stack_layers": True, "checkpoint_activations": True},
}
NOISY = {
    "dropout": 0.2,
    "attention_dropout": 0.3,
    "activation_dropout": 0.1,
    "encoder_layerdrop": 0.4,
    "decoder_layerdrop": 0.4,
}
CRITERION = LabelSmoothedCrossEntropyConfig(label_smoothing=0.1)


def batch(config: BARTConfig) -> dict[str, jax.Array]:
    source, target = rows(config, 9, 5, 7), rows(config, 6, 8, 3)
    previous = jnp.roll(target, 1, axis=1).at[:, 0].set(config.eos_token_id)
    return {"src_tokens": source, "prev_output_tokens": previous, "target": target}


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradient(bart: BART, params: Any, given: Any, key: jax.Array | None) -> Any:
    def loss(params: Any) -> jax.Array:
        return sequence_loss(bart, params, key, given, CRITERION)[0]

    return jax.value_and_grad(loss)(params)


def check_close(ours: Any, theirs: Any) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for path, array in jax.tree.leaves_with_path(theirs):
        found = functools.reduce(lambda tree, key: tree[key.key], path[1:], ours[path[0].idx])
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found / scale, array / scale, atol=1e-5, err_msg=str(path))


@pytest.mark.parametrize(
    ("variant", "names"), [("bart", list(OPTIONS)), ("mbart", ["both"]), ("untied", ["stacked"])]
)
def test_losses_and_gradients_are_the_plain_ones(variant, names):
    config = VARIANTS[variant]
    params, given = random_params(config), batch(config)
    plain = loss_and_gradient(BART(config), params, given, None)
    for name in names:
        check_close(loss_and_gradient(BART(config, **OPTIONS[name]), params, given, None), plain)


def test_dropout_is_the_same_in_all_three():
    """They differ from the plain network's, for it draws in another order."""
    config = VARIANTS["bart"].replace(**NOISY)
    params, given = random_params(config), batch(config)
    found = {}
    for name, options in OPTIONS.items():
        for seed in range(3):  # layers are dropped in some of them
            key = jax.random.key(seed)
            found[name, seed] = loss_and_gradient(BART(config, **options), params, given, key)
    for seed in range(3):
        check_close(found["recomputed", seed], found["stacked", seed])
        check_close(found["both", seed], found["stacked", seed])
    losses = [float(found["stacked", seed][0]) for seed in range(3)]
    still = float(loss_and_gradient(BART(config), params, given, None)[0])
    assert len({still, *losses}) == 4


def test_each_layer_draws_for_itself():
    """With two layers alike, the same draws in both would show."""
    config = VARIANTS["bart"].replace(dropout=0.0, encoder_layerdrop=0.5)
    params, source = random_params(config), rows(config, 9, 5, 7)
    bart = BART(config, stack_layers=True)
    run = jax.jit(lambda key: bart.encode(params, source, key=key).encoder_out)
    results = {np.asarray(run(jax.random.key(seed))).tobytes() for seed in range(24)}
    assert len(results) == 4  # none, either, both


@pytest.mark.parametrize("name", OPTIONS)
def test_features_at_one_position_of_each_row(name):
    config = VARIANTS["mbart"]
    params, given = random_params(config), batch(config)
    at = jnp.array([5, 2, 0])

    def features(bart: BART) -> jax.Array:
        encoded = bart.encode(params, given["src_tokens"])
        return bart.decode(params, given["prev_output_tokens"], encoded, at=at).features

    plain, other = features(BART(config)), features(BART(config, **OPTIONS[name]))
    assert other.shape == (3, 1, config.encoder_embed_dim)
    np.testing.assert_allclose(other, plain, atol=1e-5)


def test_hidden_states_and_attention_come_from_the_plain_network():
    config = VARIANTS["bart"]
    params, source = random_params(config), rows(config, 9, 5, 7)
    bart = BART(config, stack_layers=True)
    output = bart.encode(params, source, return_all_hiddens=True, return_attention=True)
    assert len(output.hidden_states) == 3 and len(output.attentions) == 2


def test_one_layer_is_compiled_where_layers_are_stacked():
    config = VARIANTS["bart"].replace(encoder_layers=6, decoder_layers=6)
    params, given = random_params(config), batch(config)

    def size(bart: BART) -> int:
        return loss_and_gradient.lower(bart, params, given, None).as_text().count("dot_general")

    assert size(BART(config, stack_layers=True)) * 3 < size(BART(config))


def test_less_is_kept_for_the_gradient_where_it_is_computed_again():
    config = VARIANTS["bart"].replace(encoder_layers=8, encoder_ffn_embed_dim=400)
    params, given = random_params(config), batch(config)

    def kept(bart: BART) -> int:
        lowered = loss_and_gradient.lower(bart, params, given, None)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    scanned = BART(config, stack_layers=True)
    both = BART(config, stack_layers=True, checkpoint_activations=True)
    assert kept(both) < 0.7 * kept(scanned)
