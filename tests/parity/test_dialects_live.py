"""The two trained models in every form that a BART's users have files in, each written by the real
fairseq or transformers: loaded as a user loads them, and compared in logits, heads and searches."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import bart_hk
from bart_hk.checkpoint.fairseq import from_fairseq
from bart_hk.checkpoint.fairseq_file import write_fairseq
from bart_hk.config import BARTConfig
from tests.generation.conftest import INPUTS
from tests.parity.test_checkpoints_live import letters
from tests.parity.test_model_live import our_logits, random_ids

MARGIN = 1e-5  # between the scores of hypotheses, for their order to be beyond doubt
OPTIONS = {"beam": 4, "max_len_b": 22, "min_len": 3}
# transformers' count of finished hypotheses keeps the best of those that end in the same step.
THEIRS = {**OPTIONS, "early_stopping": False}
KINDS = {"post_norm": "Bart", "pre_norm": "MBart"}
FAIRSEQ = [
    *("today", "of_2019", "of_2019_half", "of_2020", "copies", "brain_half", "half", "heads"),
    "languages",
]
TRANSFORMERS = ["safe", "sharded", "torch", "torch_sharded", "half", "brain_half", "classes"]
SAME_WEIGHTS = {
    **dict.fromkeys(("of_2019", "of_2020", "copies", "heads", "languages"), "today"),
    **dict.fromkeys(("sharded", "torch", "torch_sharded"), "safe"),
    "of_2019_half": "half",
}
LANGUAGES = ["[en_XX]", "[ro_RO]"]


@pytest.fixture(scope="module")
def models(golden) -> dict[str, Any]:
    cases = golden("generation/cases.json")["models"]
    models = {}
    for name, case in cases.items():
        ids = random_ids(BARTConfig(**case["config"]), [9, 4, 7], 8)
        models[name] = {
            "weights": case["weights"],
            "fields": case["config"],
            "kind": KINDS[name],
            "ids": [rows.tolist() for rows in ids],
            "sources": case["sources"],
        }
    return models


@pytest.fixture(scope="module")
def written(models, oracle, tmp_path_factory) -> Path:
    """Folders by both frameworks, beside what they compute with them."""
    folder = tmp_path_factory.mktemp("dialects")
    places: dict[str, dict[str, Any]] = {"fairseq": {}, "transformers": {}}
    cases = {}
    for name, model in models.items():
        shutil.copy(INPUTS / model["weights"], folder)
        config = BARTConfig(**model["fields"])
        size = config.vocab_size
        params, _ = from_fairseq(load_file(INPUTS / model["weights"]), config)
        for form in FAIRSEQ:
            place = f"{name}_{form}"
            symbols = letters(size, size - 1) if form == "languages" else letters(size, 4)
            if form == "languages":
                symbols = letters(size - 2, size - 3).insert_symbols(LANGUAGES)
            write_fairseq(folder / place, config, params, text=symbols)
            (folder / place / "model.pt").unlink()
            places["fairseq"][place] = (name, form)
            # The real one of today does not know these tensors, which are copies of others.
            opened = f"{name}_today" if form == "copies" else place
            cases[place] = {
                "directory": opened,
                "ids": model["ids"],
                # Searches depend on the weights, which most forms have in common.
                "sources": model["sources"] if SAME_WEIGHTS.get(form, form) == form else [],
                "options": OPTIONS,
            }
        for form in TRANSFORMERS:
            place = f"{name}_hf_{form}"
            letters(size, 4).save(folder / place)
            places["transformers"][place] = (name, form)
    content = {"models": models, "options": THEIRS, **places}
    (folder / "dialects.json").write_text(json.dumps(content))
    (folder / "cases.json").write_text(json.dumps(cases))
    oracle("oracle_dialects.py", folder)
    oracle("oracle_checkpoints.py", folder)
    return folder


def compare_searches(
    bart: Any,
    sources: list[list[int]],
    theirs: list[Any],
    options: dict[str, Any],
    at_once: bool = True,
) -> None:
    """All but what the oracle's own scores leave open, which is one source in ten at most."""
    assert len(sources) == len(theirs) >= 20
    rows = [np.array(row) for row in sources]
    if at_once:
        found = bart.generate(rows, **options)
    else:
        found = [bart.generate([row], **options)[0] for row in rows]
    clear = 0
    for mine, (row, hypotheses) in zip(found, zip(sources, theirs, strict=True), strict=True):
        scores = [score for _, score in hypotheses]
        if min(-np.diff(scores)) < MARGIN:
            continue
        clear += 1
        assert [h["tokens"].tolist() for h in mine] == [tokens for tokens, _ in hypotheses], row
        np.testing.assert_allclose([h["score"] for h in mine], scores, rtol=0, atol=1e-4)
    assert clear >= 0.9 * len(sources)
    assert len({str(h) for h in theirs}) > 15  # that have something to say


@pytest.mark.parametrize("form", FAIRSEQ)
@pytest.mark.parametrize("name", KINDS)
def test_fairseqs(models, written, name, form):
    place = f"{name}_{form}"
    bart = bart_hk.load(written / place)
    fields = {key: value for key, value in models[name]["fields"].items() if key != "dropout"}
    assert {key: getattr(bart.config, key) for key in fields} == fields
    report = json.loads((written / "report.json").read_text())[place]
    theirs = load_file(written / f"{place}.safetensors")
    ids = [np.array(rows) for rows in models[name]["ids"]]
    ours = our_logits(bart.config, bart.params, ids) if form != "heads" else None
    if ours is None:
        body = {k: v for k, v in bart.params.items() if not k.startswith("classification_heads")}
        ours = our_logits(bart.config, body, ids)
    np.testing.assert_allclose(ours, theirs["logits"], rtol=0, atol=1e-4)
    assert theirs["logits"].std() > 1
    heads = {key.removeprefix("heads/") for key in theirs if key != "logits"}
    assert set(bart.heads) == heads and bool(heads) == (form == "heads")
    for head in heads:
        found = bart.predict(head, ids[0][:1], return_logits=True)
        np.testing.assert_allclose(found, theirs[f"heads/{head}"], rtol=0, atol=1e-4)
    assert len(bart.task.source_dictionary) == len(report["symbols"])
    if form == "languages":
        assert report["task"] == "MultilingualDenoisingTask"
        assert report["symbols"][-3:] == [*LANGUAGES, "<mask>"]
        assert bart.text.dictionary.symbols[-3:] == [*LANGUAGES, "<mask>"]
    searched = json.loads((written / "report.json").read_text())[
        f"{name}_{SAME_WEIGHTS.get(form, form)}"
    ]
    # The first form row by row, the others all at once: neither changes anything.
    sources = models[name]["sources"]
    compare_searches(bart, sources, searched["generated"], OPTIONS, at_once=form != "today")


@pytest.mark.parametrize("form", TRANSFORMERS)
@pytest.mark.parametrize("name", KINDS)
def test_transformers(models, written, name, form):
    place = f"{name}_hf_{form}"
    files = {path.name for path in (written / place).iterdir()}
    pattern = {
        "sharded": r"model-0000\d-of-0000\d\.safetensors",
        "torch": r"pytorch_model\.bin",
        "torch_sharded": r"pytorch_model-0000\d-of-0000\d\.bin",
        "brain_half": r"pytorch_model\.bin",
    }.get(form, r"model\.safetensors")
    count = sum(bool(re.fullmatch(pattern, file)) for file in files)
    assert count > 1 if "sharded" in form else count == 1, files
    bart = bart_hk.load(written / place)
    assert bart.config.encoder_normalize_before == (name == "pre_norm")
    theirs = load_file(written / f"{place}.safetensors")
    ids = [np.array(rows) for rows in models[name]["ids"]]
    if form == "classes":
        (head,) = bart.heads
        assert bart.heads[head].labels == ["bad", "fair", "good"]
        for i, row in enumerate(ids[0]):
            row = row[row != bart.config.pad_token_id]
            found = bart.predict(head, row, return_logits=True)[0]
            np.testing.assert_allclose(found, theirs["classes"][i], rtol=0, atol=1e-4)
        return
    np.testing.assert_allclose(
        our_logits(bart.config, bart.params, ids), theirs["logits"], rtol=0, atol=1e-4
    )
    assert theirs["logits"].std() > 1
    generated = json.loads((written / "generated.json").read_text())
    theirs = generated[f"{name}_hf_{SAME_WEIGHTS.get(form, form)}"]
    compare_searches(bart, models[name]["sources"], theirs, THEIRS)
