"""What nobody means is refused in one line that names it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bart_hk
from bart_hk.training.config import ConfigError


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda b: b.decode("hello"), TypeError, "whole numbers, not 'hello'"),
        (lambda b: b.decode(["hello"]), TypeError, r"whole numbers, not \['hello'\]"),
        (lambda b: b.decode([0.5]), TypeError, r"whole numbers, not \[0.5\]"),
        (lambda b: b.decode(5), TypeError, "whole numbers, not 5"),
        (lambda b: b.decode(None), TypeError, "whole numbers, not None"),
        (lambda b: b.decode([[0, 2], 3]), TypeError, "whole numbers, not 3"),
        (lambda b: b.encode(None), TypeError, "None is no text: give a string"),
        (lambda b: b.encode(()), TypeError, r"\(\) is no text"),
        (lambda b: b.encode("a", 3), TypeError, r"\('a', 3\) is no text"),
        (lambda b: b.encode(["a", b"b"]), TypeError, "b'b' is no text"),
        (lambda b: b.sample([3]), TypeError, "3 is no text"),
        (lambda b: b.sample(None), TypeError, "sample takes a text or a list of them, not a NoneT"),
        (
            lambda b: b.sample("a", stop_strings=5),
            TypeError,
            "must be a text or a list of them, not 5",
        ),
        (lambda b: b.classify([1], head="mood"), TypeError, "1 is no text"),
        (lambda b: b.classify(None, head="mood"), TypeError, "None is no text"),
        (lambda b: b.rank([1, 2], head="one"), TypeError, r"\(1,\) is no text"),
        (lambda b: b.fill_mask(None), TypeError, "input 0 is None; give a text with <mask>"),
        (lambda b: b.fill_mask(["a <mask>", 3]), TypeError, "input 1 is 3; give a text"),
        (lambda b: b.score(None), TypeError, "takes texts, or arrays of ids, not None"),
        (lambda b: b.score(["a"], 5), TypeError, "takes texts, or arrays of ids, not 5"),
        (lambda b: b.loss(b.params, None, [1]), TypeError, r"batch=\[1\] is no dictionary"),
        (
            lambda b: setattr(b, "params", b.params | {"classification_heads/x": {"w": 1}}),
            ValueError,
            "has no place for the parameter classification_heads/x/w",
        ),
        (lambda b: setattr(b, "params", None), TypeError, "params=None is no tree as"),
        (lambda b: setattr(b, "params", [1]), TypeError, r"params=\[1\] is no tree as"),
        (lambda b: setattr(b, "params", {"a": 1}), TypeError, "params={'a': 1} is no tree as"),
        (lambda b: bart_hk.train(None), ConfigError, "config=None is no dictionary"),
        (lambda b: bart_hk.train("x"), ConfigError, "config='x' is no dictionary"),
    ],
)
def test_it_is_named(bart, ask, error, message):
    bart.register_classification_head("mood", 2)
    bart.register_classification_head("one", 1)
    with pytest.raises(error, match=message) as caught:
        ask(bart)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ["a", "b", "a"]}, r"labels=\['a', 'b', 'a'\] must be a list of different"),
        ({"labels": 3}, "labels=3 must be a list of different names"),
        ({"labels": "ab"}, "labels='ab' must be a list of different names"),
        ({"labels": [0, 1]}, r"labels=\[0, 1\] must be a list of different names"),
        ({"num_classes": 2, "inner_dim": 0}, "inner_dim=0 must be a number, 1 or more"),
        ({"num_classes": 2, "inner_dim": 2.0}, "inner_dim=2.0 must be a number"),
        ({"num_classes": "3"}, "num_classes='3' must be a number"),
        ({"num_classes": 2.5}, "num_classes=2.5 must be a number"),
        ({"num_classes": True}, "num_classes=True must be a number"),
        ({"num_classes": -1}, "num_classes=-1 must be a number, 1 or more"),
        ({"name": 3, "num_classes": 2}, "3 cannot name a head"),
    ],
)
def test_a_head_that_cannot_be(bart, arguments, message):
    with pytest.raises(ValueError, match=message):
        bart.register_classification_head(**{"name": "mood"} | arguments)
    assert not bart.heads


def test_overrides_of_a_wrong_type(bart, tmp_path):
    bart.save(tmp_path)
    for name, value, kind in (
        ("dropout", "x", "float"),
        ("dropout", True, "float"),
        ("encoder_layers", 1.0, "int"),
        ("encoder_layers", None, "int"),
        ("layernorm_embedding", 1, "bool"),
        ("forced_bos_token_id", "0", r"int \| None"),
    ):
        with pytest.raises(ValueError, match=f"{name}={value!r} must be of type {kind}"):
            bart_hk.load(tmp_path, **{name: value})
    assert bart_hk.load(tmp_path, dropout=0, forced_bos_token_id=None).config.dropout == 0


def test_batches_that_have_no_loss(bart):
    bart.register_classification_head("mood", 2)
    ids = np.array([[0, 5, 2]])
    refused = [
        ({"src_tokens": ids}, None, "the batch has no 'target'; it has src_tokens"),
        ({"target": ids}, None, "the batch has no 'src_tokens'; it has target"),
        ({"src_tokens": ids, "target": ids + 50263}, None, "target 50268 is outside of the 50265"),
        ({"src_tokens": ids, "target": [2]}, "mood", "target 2 is outside of the 2 classes"),
        ({"src_tokens": ids, "target": jnp.array([-1])}, "mood", "target -1 is outside of the 2"),
    ]
    for batch, head, message in refused:
        with pytest.raises(ValueError, match=message):
            bart.loss(bart.params, None, batch, head)
    # Inside of jit nothing is known of values; there it is a loss that nobody overlooks.
    loss = jax.jit(lambda batch: bart.loss(bart.params, None, batch, "mood")[0])
    assert np.isnan(loss({"src_tokens": ids, "target": np.array([2])}))
    assert np.isfinite(loss({"src_tokens": ids, "target": np.array([1])}))
