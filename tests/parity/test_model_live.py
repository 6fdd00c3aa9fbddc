"""Our logits beside those of the real fairseq and of transformers, computed now."""

import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from ml_dtypes import bfloat16
from safetensors.numpy import load_file

from bart_hk.checkpoint import files
from bart_hk.checkpoint.fairseq import to_fairseq
from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.checkpoint.tree import Params, to_torch, torch_name
from bart_hk.config import BARTConfig, architecture
from bart_hk.model import BART, ClassificationHead, sentence_representation
from bart_hk.tasks import losses

SMALL = BARTConfig(
    vocab_size=60,
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    encoder_layers=2,
    encoder_attention_heads=4,
    decoder_ffn_embed_dim=20,
    decoder_layers=1,
    decoder_attention_heads=2,
    max_source_positions=14,
    max_target_positions=14,
)
UNTIED = {"share_all_embeddings": False, "share_decoder_input_output_embed": False}
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
EXPRESSIBLE: dict[str, dict[str, Any]] = {
    "post_norm": {},
    "mbart": {**PRE_NORM, "no_scale_embedding": False},
    "pad_0": {"pad_token_id": 0, "bos_token_id": 51, "eos_token_id": 52, "unk_token_id": None},
    "untied": {**UNTIED, "activation_fn": "prelu"},
    "tied_output": {"share_all_embeddings": False, "activation_fn": "relu_squared"},
    "bias": {"final_logits_bias": True, "activation_fn": "swish"},
    "relu": {"activation_fn": "relu"},
    "gelu_fast": {"activation_fn": "gelu_fast"},
    "xielu": {"activation_fn": "xielu"},
    "bfloat16": {},
}
INEXPRESSIBLE: dict[str, dict[str, Any]] = {
    "plain_embedding": {"layernorm_embedding": False},
    "sinusoidal": {"encoder_learned_pos": False, "decoder_learned_pos": False},
    "half_pre_norm": {"decoder_normalize_before": True},
    "long_source": {"max_source_positions": 30},
}


def random_ids(config: BARTConfig, lengths: list[int], target_length: int) -> list[np.ndarray]:
    """Padded sources <s> ... </s>, and a decoder's input that begins with </s>."""
    rng = np.random.default_rng(3)
    high = min(config.vocab_size, 50)  # below the special ids of pad_0
    source = np.full((len(lengths), max(lengths)), config.pad_token_id, np.int32)
    for row, length in zip(source, lengths, strict=True):
        row[: length - 1] = rng.integers(4, high, length - 1)
        row[length - 1] = config.eos_token_id
    target = rng.integers(4, high, (len(lengths), target_length)).astype(np.int32)
    target[:, 0] = config.eos_token_id
    return [source, target]


def random_params(config: BARTConfig, spread: float) -> Params:
    """Initial parameters with noise, for biases and layer norms that matter."""
    rng = np.random.default_rng(4)

    def perturbed(leaf: jax.Array) -> np.ndarray:
        return np.asarray(leaf) + spread * rng.standard_normal(leaf.shape, np.float32)

    return jax.tree.map(perturbed, BART(config).init(jax.random.key(5)))


def our_logits(config: BARTConfig, params: Params, ids: list[np.ndarray]) -> np.ndarray:
    bart = BART(config)

    @jax.jit
    def run(params, source, previous):
        features = bart.decode(params, previous, bart.encode(params, source)).features
        return bart.project(params, features)

    return np.asarray(run(params, *ids))


def our_logits_and_classes(
    config: BARTConfig, params: Params, head: Params, ids: list[np.ndarray]
) -> list[np.ndarray]:
    bart = BART(config)

    @jax.jit
    def run(params, head, source, previous):
        encoded = bart.encode(params, source)
        logits = bart.project(params, bart.decode(params, previous, encoded).features)
        summary = sentence_representation(bart, params, source, source)
        return logits, ClassificationHead(config, 3).apply(head, summary)

    return [np.asarray(x) for x in run(params, head, *ids)]


def case_of(ids: list[np.ndarray], **rest: Any) -> dict[str, Any]:
    return {"ids": [rows.tolist() for rows in ids], **rest}


def write_state(path: Any, params: Params, config: BARTConfig) -> None:
    state = to_fairseq(params, config)
    files.write_tensors(path, {name: lambda a=array: a for name, array in state.items()})


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "vocabulary"), [("bart_base", 51201), ("bart_large", 50265)], ids=["base", "large"]
)
def test_full_size(oracle, tmp_path, name, vocabulary):
    """fp32 logits of bart.base's and bart.large's shapes, over a padded batch."""
    config = architecture(name, vocab_size=vocabulary)
    params = random_params(config, 0.01)
    ids = random_ids(config, [48, 17, 33], 24)
    write_model(tmp_path / "model", config, params)
    write_state(tmp_path / "state.safetensors", params, config)
    fields = dataclasses.asdict(config.replace(vocab_size=vocabulary))
    case = case_of(ids, directory="model", state="state.safetensors", fields=fields)
    (tmp_path / "cases.json").write_text(json.dumps({"case": case}))
    ours = our_logits(config, params, ids)
    del params
    oracle("oracle_model.py", tmp_path)
    theirs = load_file(tmp_path / "case.safetensors")
    assert theirs.keys() == {"fairseq", "transformers"}
    assert ours.std() > 0.5  # there is something to compare
    for framework, logits in theirs.items():
        difference = np.abs(ours - logits).max()
        print(f"{name}: largest difference from {framework} {difference:.2g}")
        assert difference <= 1e-4, framework


@pytest.mark.timeout(600)
def test_gradients_at_full_size(oracle, tmp_path):
    """Of the summed cross-entropy, for every tensor of bart.base's shapes."""
    config = architecture("bart_base")
    params = random_params(config, 0.01)
    source, previous = random_ids(config, [24, 9], 12)
    target = np.concatenate([previous[:, 1:], np.full((2, 1), config.eos_token_id, np.int32)], 1)
    target[1, 7:] = config.pad_token_id
    write_model(tmp_path / "model", config, params)
    case = case_of([source, previous], directory="model", target=target.tolist())
    (tmp_path / "cases.json").write_text(json.dumps({"case": case}))
    oracle("oracle_model.py", tmp_path)
    bart = BART(config)

    @jax.jit
    @jax.grad
    def gradients(params):
        features = bart.decode(params, previous, bart.encode(params, source)).features
        mask = target != config.pad_token_id
        return losses.cross_entropy(bart.project(params, features), target, mask)[0]

    ours = gradients(params)
    theirs = load_file(tmp_path / "case.gradients.safetensors")
    whole = np.sqrt(sum(np.square(gradient).sum() for gradient in theirs.values()))
    largest = 0.0
    for path, leaves in ours.items():
        for name, gradient in leaves.items():
            key = "shared.weight" if path == "embed_tokens" else torch_name(path, name)
            expected = theirs.pop(f"model.{key}")
            if key.endswith("k_proj.bias"):  # zero in exact arithmetic
                assert np.linalg.norm(gradient) < 1e-6 * whole, key
                continue
            difference = np.linalg.norm(to_torch(name, gradient) - expected)
            largest = max(largest, difference / np.linalg.norm(expected))
            assert difference <= 1e-4 * np.linalg.norm(expected), key
    assert not theirs
    print(f"bart_base: largest difference of a gradient {largest:.2g} of its norm")


@pytest.mark.timeout(600)
def test_transformers_opens_what_we_write(oracle, tmp_path):
    """The same logits, and not a word about tensors that are missing or not used."""
    cases, expected = {}, {}
    for name, changes in EXPRESSIBLE.items():
        config = SMALL.replace(**changes)
        dtype = bfloat16 if name == "bfloat16" else np.float32
        params = jax.tree.map(lambda a, d=dtype: a.astype(d), random_params(config, 0.3))
        head = jax.tree.map(
            lambda a: 3 * np.asarray(a), ClassificationHead(config, 3).init(jax.random.key(6))
        )
        heads = {"mood": HeadFiles(head, ["bad", "fair", "good"])}
        ids = random_ids(config, [9, 4, 7], 8)
        # transformers' classifier reads the decoder over the source, which we feed it.
        for case, head_name, case_ids in (
            (name, None, ids),
            (f"{name}_classifier", "mood", [ids[0], ids[0]]),
        ):
            write_model(tmp_path / case, config, params, heads, head=head_name)
            cases[case] = case_of(case_ids, directory=case)
        # What comes back from the directory, not what went into it.
        found = read_model(tmp_path / f"{name}_classifier", "float32")
        assert found.config == config
        both = our_logits_and_classes(found.config, found.params, found.heads["mood"].params, ids)
        expected[name], expected[f"{name}_classifier"] = both
    for name, changes in INEXPRESSIBLE.items():
        config = SMALL.replace(**changes)
        write_model(tmp_path / name, config, random_params(config, 0.3))
        cases[name] = case_of(random_ids(config, [4], 8), directory=name)

    (tmp_path / "cases.json").write_text(json.dumps(cases))
    oracle("oracle_model.py", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    for name in INEXPRESSIBLE:
        assert "`bart_hk`" in report[name]["refused"], name
    for name, logits in expected.items():
        assert report[name]["said"] == [], name
        classifies = name.endswith("_classifier")
        kind = "MBartFor" if name.startswith("mbart") else "BartFor"
        kind += "SequenceClassification" if classifies else "ConditionalGeneration"
        assert report[name]["class"] == kind
        if classifies:
            assert report[name]["labels"] == {"0": "bad", "1": "fair", "2": "good"}
        theirs = load_file(tmp_path / f"{name}.safetensors")["transformers"]
        np.testing.assert_allclose(logits, theirs, rtol=1e-5, atol=1e-5, err_msg=name)


def test_fairseq_loads_what_we_write(oracle, tmp_path):
    """Every structure of fairseq's, and strictly: no tensor is missing, none is left over."""
    variants = {
        "post_norm": {},
        "pre_norm": {**PRE_NORM, "no_scale_embedding": False},
        "half_pre_norm": {"decoder_normalize_before": True, "layernorm_embedding": False},
        "untied": UNTIED,
        "tied_output": {"share_all_embeddings": False, "activation_fn": "relu_squared"},
        "long_source": {"max_source_positions": 30, "activation_fn": "tanh"},
    }
    cases, expected = {}, {}
    for name, changes in variants.items():
        config = SMALL.replace(**changes)
        params = random_params(config, 0.3)
        ids = random_ids(config, [9, 4, 7], 8)
        write_state(tmp_path / f"{name}.state", params, config)
        fields = dataclasses.asdict(config) | changes  # which fairseq's names are in
        cases[name] = case_of(ids, state=f"{name}.state", fields=fields)
        expected[name] = our_logits(config, params, ids)
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    oracle("oracle_model.py", tmp_path)
    for name, logits in expected.items():
        theirs = load_file(tmp_path / f"{name}.safetensors")["fairseq"]
        np.testing.assert_allclose(logits, theirs, rtol=1e-5, atol=1e-5, err_msg=name)
