"""`classify(texts, labels=[...])`: the answers of transformers' pipeline, and what is refused."""

import json

import numpy as np
import pytest

import bart_hk
from bart_hk.hub.zero_shot import answers, hypotheses, scores
from tests.conftest import GOLDENS


@pytest.fixture(scope="module")
def recorded():
    return json.loads((GOLDENS / "zero_shot" / "cases.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def models(recorded, tmp_path_factory):
    """As `save_pretrained` leaves them."""
    loaded = {}
    for name, config in recorded["configs"].items():
        folder = tmp_path_factory.mktemp(name)
        (folder / "config.json").write_text(json.dumps(config))
        for file, content in recorded["tokenizer"].items():
            (folder / file).write_text(content, encoding="utf-8")
        weights = GOLDENS / "zero_shot" / f"{name}.safetensors"
        (folder / "model.safetensors").write_bytes(weights.read_bytes())
        loaded[name] = bart_hk.load(folder)
    return loaded


@pytest.mark.parametrize("name", ["mnli", "entailment_first", "unnamed"])
def test_labels_and_scores_are_transformers(recorded, models, name):
    cases = [case for case in recorded["cases"] if case["model"] == name]
    assert len(cases) == 4
    for case in cases:
        asked = dict(case["asked"])
        labels = asked.pop("candidate_labels")
        found = models[name].classify(recorded["texts"], labels=labels, **asked)
        for ranked, theirs in zip(found, case["answers"], strict=True):
            assert [label for label, _ in ranked] == theirs["labels"]
            np.testing.assert_allclose([p for _, p in ranked], theirs["scores"], atol=1e-5)


def test_every_option_changes_something(models, recorded):
    bart, text = models["mnli"], recorded["texts"][0]
    labels = ["sport", "politics", "film"]
    plain = dict(bart.classify(text, labels=labels))
    for options in (
        {"multi_label": True},
        {"hypothesis_template": "I read about {} today."},
        {"no_separator": True},
    ):
        other = dict(bart.classify(text, labels=labels, **options))
        assert max(abs(plain[label] - other[label]) for label in labels) > 1e-3


def test_a_head_trained_here_reads_pairs_as_it_was_trained(models, recorded):
    bart, text = models["mnli"], recorded["texts"][0]
    labels = ["sport", "politics"]
    without = bart.classify(text, labels=labels, no_separator=True)
    bart.extras["training"] = {"update": 1}
    try:
        assert bart.classify(text, labels=labels) == without
    finally:
        del bart.extras["training"]


def test_which_outputs_say_yes_and_no():
    assert answers(["contradiction", "neutral", "entailment"], 3) == (2, 0)
    assert answers(["Entailment", "neutral", "contradiction"], 3) == (0, 2)
    assert answers(["entailment", "not_entailment"], 2) == (0, 1)
    assert (
        answers(None, 2) == answers(["LABEL_0", "LABEL_1"], 2) == answers(["0", "1"], 2) == (1, 0)
    )
    with pytest.raises(ValueError, match="trained to tell entailment; this one tells bad, good"):
        answers(["bad", "good"], 2)
    logits = np.array([[[0.0, 5.0, 1.0], [0.0, 0.0, 3.0]]])
    one = scores(logits, 2, 0, False)
    np.testing.assert_allclose(one, [[1 / (1 + np.exp(2)), 1 / (1 + np.exp(-2))]])
    each = scores(logits, 2, 0, True)
    np.testing.assert_allclose(each, 1 / (1 + np.exp([[-1.0, -3.0]])))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": []}, "give a list of at least one label"),
        ({"labels": "sport"}, "labels='sport': give a list"),
        ({"labels": ["a", "a"]}, "labels has 'a' twice"),
        ({"labels": ["a", " "]}, "' ' is no name of a class"),
        ({"labels": ["a"], "hypothesis_template": "no place"}, "needs one {} where the label"),
        ({"labels": ["a"], "hypothesis_template": "{} {}"}, "needs one {} where the label"),
    ],
)
def test_what_makes_no_sense_is_refused(models, arguments, message):
    with pytest.raises(ValueError, match=message):
        models["mnli"].classify("text", **arguments)
    assert hypotheses(["a"], "Of {}.") == ["Of a."]


def test_pairs_and_heads_of_one_output_are_refused(bart):
    bart.register_classification_head("one", num_classes=1)
    with pytest.raises(ValueError, match="a head that was trained to tell entailment"):
        bart.classify("text", labels=["a"])
    with pytest.raises(TypeError, match="with labels a text is a string; input 0 is"):
        bart.classify([("a", "b")], labels=["a"])


def test_a_head_of_several_labels_names_those_that_hold(bart):
    bart.register_classification_head("mood", labels=["a", "b", "c"])
    head = bart.heads["mood"]
    head.multi_label = True
    head.params["out_proj"]["b"] = head.params["out_proj"]["b"] * 0 + np.array([3.0, -9.0, 9.0])
    labels = bart.classify("a fine film", head="mood")
    assert [label for label, _ in labels] == ["c", "a"]
    assert labels[0][1] > labels[1][1] > 0.5


def test_a_head_of_several_labels_has_a_loss(bart):
    import jax

    bart.register_classification_head("mood", labels=["a", "b"])
    bart.heads["mood"].multi_label = True
    ids = bart.encode("a fine film")[None]
    target = np.array([[1.0, 0.0]])
    loss, count = bart.loss(bart.params, None, {"src_tokens": ids, "target": target}, head="mood")
    logits = np.asarray(bart.predict("mood", ids, return_logits=True), np.float64)
    expected = (np.logaddexp(0, logits) - logits * target).mean()
    assert float(loss) == pytest.approx(expected, rel=1e-5) and float(count) == 1
    assert jax.tree.leaves(bart.params)
