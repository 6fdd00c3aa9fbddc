"""fairseq's published examples run here, with only their import and loading lines changed."""

import contextlib
import types
import warnings

import numpy as np
import pytest

import bart_hk
from bart_hk.hub import BARTHubInterface
from tests.hub.conftest import CONFIG
from tests.hub.fairseq_examples import BLOCKS
from tests.parameters import random_params

# What stands in for `import torch`. Where torch is installed, torch itself does (tests/parity).
NUMPY_AS_TORCH = types.SimpleNamespace(Size=tuple, all=np.all, no_grad=contextlib.nullcontext)


def run(block: str, namespace: dict) -> None:
    kept = [line for line in BLOCKS[block].splitlines() if not line.endswith("# load")]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "jax sees no GPU")
        exec("\n".join(kept), namespace)


def as_wide_as_large(text) -> BARTHubInterface:
    """bart.large's width and decoder depth, which the examples state, around a small vocabulary.

    The vocabulary keeps its ids; the table is of full size, the rest as thin as it can be.
    """
    config = bart_hk.architecture(
        "bart_large",
        encoder_layers=1,
        encoder_ffn_embed_dim=8,
        decoder_ffn_embed_dim=8,
        max_source_positions=64,
        max_target_positions=64,
    )
    return BARTHubInterface(config, random_params(config, 0.02), text)


@pytest.fixture
def torch():
    return NUMPY_AS_TORCH


def test_loading_encoding_features(torch, text, tmp_path):
    namespace = {"torch": torch, "bart": as_wide_as_large(text)}
    for block in ("load", "encode", "features"):
        run(block, namespace)
    assert namespace["bart"].decode(namespace["tokens"]) == "Hello world!"


def test_from_pretrained(shared, tmp_path):
    shared.save(tmp_path)
    namespace = {
        "bart": bart_hk.BARTModel.from_pretrained(str(tmp_path), checkpoint_file="model.pt")
    }
    for block in ("from_pretrained", "encode"):
        run(block, namespace)


def test_classification(torch, bart, tmp_path, monkeypatch, capsys):
    bart.register_classification_head("mnli", num_classes=3)
    namespace = {"torch": torch, "bart": bart, "collate_tokens": bart_hk.collate_tokens}
    for block in ("pairs", "new_head", "batched", "gpu"):
        run(block, namespace)
    assert namespace["logprobs"].shape == (2, 3)
    folder = tmp_path / "glue_data" / "MNLI"
    folder.mkdir(parents=True)
    # The file's columns 8 and 9 are the sentences, the last one the label.
    rows = [("one film", "two films", "neutral"), ("a", "b", "entailment")]
    lines = ["\t".join(["x"] * 8 + list(row)) for row in [("s1", "s2", "gold"), *rows]]
    (folder / "dev_matched.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    run("mnli", namespace)
    assert capsys.readouterr().out.count("| Accuracy:") == 2 == namespace["nsamples"]


def test_glue(bart, tmp_path, monkeypatch, capsys):
    bart.register_classification_head(
        "sentence_classification_head", labels=["entailment", "not_entailment"]
    )
    folder = tmp_path / "glue_data" / "RTE"
    folder.mkdir(parents=True)
    rows = [("0", "one film", "two films", "entailment"), ("1", "a", "b", "not_entailment")]
    lines = ["\t".join(row) for row in [("index", "s1", "s2", "label"), *rows]]
    (folder / "dev.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    namespace = {"bart": bart}
    run("glue", namespace)
    predicted = bart.classify([row[1:3] for row in rows])
    correct = sum(label == row[3] for (label, _), row in zip(predicted, rows, strict=True))
    assert (namespace["ncorrect"], namespace["nsamples"]) == (correct, 2)


def test_fill_mask(torch, bart):
    namespace = {"torch": torch, "bart": bart}
    run("fill_mask", namespace)


def test_summarisation(torch, bart, tmp_path, monkeypatch):
    (tmp_path / "test.source").write_text("".join(f"Article number {i}.\n" for i in range(34)))
    monkeypatch.chdir(tmp_path)
    run("cnn", {"torch": torch, "bart": bart})
    assert len((tmp_path / "test.hypo").read_text().split("\n")) >= 35
    assert bart.extract_features(bart.encode("a")).dtype == np.float16
    assert CONFIG == bart.config
