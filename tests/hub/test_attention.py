"""`bart.attention`: the weights themselves, their shapes and their labels."""

import numpy as np
import pytest

from tests.hub.conftest import CONFIG

SOURCE, TARGET = "Hello world, $5 a day!", "Bye"


def test_shapes_and_sums(shared):
    found = shared.attention(SOURCE, TARGET)
    s, t = len(shared.encode(SOURCE)), len(shared.encode(TARGET))
    heads = CONFIG.encoder_attention_heads
    assert found.encoder.shape == (1, heads, s, s)
    assert found.decoder.shape == (2, heads, t, t) and found.cross.shape == (2, heads, t, s)
    for weights in found[:3]:
        assert weights.dtype == np.float32 and weights.std() > 0.01
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=0, atol=1e-5)
    assert not np.triu(found.decoder, 1).any()
    assert found.src_tokens.tolist() == shared.encode(SOURCE).tolist()
    assert found.prev_output_tokens.tolist() == [2, *shared.encode(TARGET)[:-1]]


def test_they_are_the_models(shared):
    """The first encoder layer's, by hand; padding to a bucket changes nothing."""
    ids = shared.encode(SOURCE)
    found, params = shared.attention(ids), shared.params
    states = shared.model.encode(params, ids[None], return_all_hiddens=True).hidden_states
    x, layer = np.asarray(states[0][0]), params["encoder/layers_0/self_attn/q_proj"]
    keys = params["encoder/layers_0/self_attn/k_proj"]
    width = CONFIG.encoder_embed_dim // CONFIG.encoder_attention_heads
    q, k = (x @ np.asarray(p["w"]) + np.asarray(p["b"]) for p in (layer, keys))
    scores = q[:, :width] @ k[:, :width].T / width**0.5
    by_hand = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(found.encoder[0, 0], by_hand, rtol=0, atol=1e-5)
    unpadded = shared.model.encode(params, ids[None], return_attention=True)
    target = shared.model.decode(params, np.roll(ids, 1)[None], unpadded, return_attention=True)
    for ours, kind in (
        (found.encoder, unpadded.attentions),
        (found.decoder, target.self_attentions),
        (found.cross, target.cross_attentions),
    ):
        np.testing.assert_allclose(ours, np.concatenate(kind), rtol=0, atol=1e-5)


def test_labels(shared):
    ids = [0, *shared.text.encode("Hello world"), 50264, 2, 1]
    assert shared.token_labels(ids) == ["<s>", "Hello", " world", "<mask>", "</s>", "<pad>"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a " * 100,), None),  # encode cuts a text
        (([0] * 65,), "the source has 65 tokens; this model takes 1 to 64"),
        (([0, 2], [5] * 65), "the target has 65 tokens"),
        ((np.zeros(0, np.int32),), "the source has 0 tokens"),
        ((np.zeros((2, 3), np.int32),), r"give a text or ids \[T\], not an array int32\[2, 3\]"),
        ((np.zeros(3),), "not an array float64"),
        (([0, 60000],), "an id is 60000; the vocabulary has 50265"),
        (([0, -1],), "an id is -1; the vocabulary has 50265"),
    ],
)
@pytest.mark.filterwarnings("ignore:a text of")
def test_what_cannot_be_read(shared, arguments, message):
    if message is None:
        assert len(shared.attention(*arguments).src_tokens) == 64
        return
    with pytest.raises(ValueError, match=message) as caught:
        shared.attention(*arguments)
    assert "\n" not in str(caught.value)
