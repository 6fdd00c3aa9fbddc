"""Zero-shot classification: a model that we saved, opened by transformers' own pipeline."""

import json

import numpy as np

from bart_hk.hub import BARTHubInterface
from bart_hk.text import TextEncoder
from tests.hub.conftest import CONFIG
from tests.parameters import random_params

TEXTS = ["The cup final went to penalties.", "Parliament voted. " * 20, "a bad film"]
CALLS = [
    {"candidate_labels": ["sport", "politics", "film"]},
    {"candidate_labels": ["sport", "politics", "film"], "multi_label": True},
    {"candidate_labels": ["sport"], "hypothesis_template": "About {}, this is."},
]


def test_the_pipeline_says_the_same(oracle, tmp_path):
    bart = BARTHubInterface(CONFIG, random_params(CONFIG, 0.16), TextEncoder.gpt2())
    bart.register_classification_head("nli", labels=["contradiction", "neutral", "entailment"])
    head = bart.heads["nli"]
    head.params["out_proj"]["w"] = head.params["out_proj"]["w"] * 20
    bart.save(tmp_path / "model", head="nli")
    (tmp_path / "asked.json").write_text(json.dumps({"texts": TEXTS, "calls": CALLS}))
    oracle("oracle_zero_shot.py", tmp_path)
    answered = json.loads((tmp_path / "answered.json").read_text())
    spreads = []
    for call, answers in zip(CALLS, answered, strict=True):
        options = {key: value for key, value in call.items() if key != "candidate_labels"}
        found = bart.classify(TEXTS, labels=call["candidate_labels"], **options)
        for ranked, theirs in zip(found, answers, strict=True):
            assert [label for label, _ in ranked] == theirs["labels"]
            np.testing.assert_allclose([p for _, p in ranked], theirs["scores"], atol=1e-5)
            spreads.append(max(theirs["scores"]) - min(theirs["scores"]))
    assert max(spreads) > 0.01
