"""Our network computes what fairseq's and transformers' do, from recorded small models."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from bart_hk.checkpoint import tree
from bart_hk.checkpoint.fairseq import from_fairseq, to_fairseq
from bart_hk.checkpoint.huggingface import read_model
from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.config import Activation, BARTConfig
from bart_hk.model import BART, ClassificationHead, sentence_representation
from bart_hk.model.layers import activate

CASES = [
    "fairseq_post_norm",
    "fairseq_pre_norm",
    "fairseq_encoder_pre_norm",
    "fairseq_plain_embedding",
    "fairseq_untied",
    "fairseq_tied_output",
    "fairseq_more_decoder",
    "fairseq_positions",
    "fairseq_sinusoidal",
    "fairseq_half_sinusoidal",
    "transformers_bart",
    "transformers_pad_0",
    "transformers_mbart",
    "transformers_untied",
    "transformers_bias",
    "transformers_classifier",
]
WITH_GRADIENTS = [
    "fairseq_post_norm",
    "fairseq_pre_norm",
    "fairseq_plain_embedding",
    "fairseq_untied",
    "fairseq_tied_output",
    "transformers_pad_0",
    "transformers_mbart",
]
TOLERANCE = 1e-5


class Case(NamedTuple):
    """A recorded model, read by our readers, and what its own framework made of the ids."""

    name: str
    config: BARTConfig
    params: tree.Params
    heads: dict[str, HeadFiles]
    ids: dict[str, np.ndarray]  # src_tokens, prev_output_tokens, target
    outputs: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]  # under the framework's names


def read_case(golden: Any, name: str, folder: Path) -> Case:
    about = golden("model/cases.json")["cases"][name]
    parts: dict[str, dict[str, np.ndarray]] = {"weights": {}, "outputs": {}, "gradients": {}}
    for key, array in golden(f"model/{name}.safetensors").items():
        part, _, rest = key.partition("/")
        parts[part][rest] = array
    if about["framework"] == "fairseq":
        config = BARTConfig(**about["config"])
        params, head_params = from_fairseq(parts["weights"], config)
        heads = {name: HeadFiles(head) for name, head in head_params.items()}
    else:
        for file, content in about["files"].items():
            (folder / file).write_text(json.dumps(content))
        save_file(parts["weights"], folder / "model.safetensors", {"format": "pt"})
        config, params, heads, _ = vars(read_model(folder)).values()
    ids = {
        k: np.asarray(about[k], np.int32) for k in ("src_tokens", "prev_output_tokens", "target")
    }
    return Case(name, config, params, heads, ids, parts["outputs"], parts["gradients"])


def close(ours: Any, theirs: np.ndarray, real: Any, message: str) -> None:
    """Equal at the real positions: what stands at padding is nobody's business."""
    assert ours.shape == theirs.shape, message
    np.testing.assert_allclose(
        np.asarray(ours)[real], theirs[real], rtol=TOLERANCE, atol=TOLERANCE, err_msg=message
    )


@pytest.mark.parametrize("name", CASES)
def test_forward_pass(golden: Any, tmp_path: Path, name: str) -> None:
    case = read_case(golden, name, tmp_path)
    bart, source, outputs = BART(case.config), case.ids["src_tokens"], case.outputs
    classifies = name == "transformers_classifier"
    previous = source if classifies else case.ids["prev_output_tokens"]
    asked = {"return_all_hiddens": True, "return_attention": True}

    @jax.jit
    def run(params, heads):
        encoded = bart.encode(params, source, **asked)
        decoded = bart.decode(params, previous, encoded, **asked)
        # Both frameworks classify by the decoder's features over the source itself.
        summary = sentence_representation(bart, params, source, source)
        classes = {
            name: ClassificationHead(case.config, h.num_classes, h.inner_dim).apply(
                heads[name], summary
            )
            for name, h in case.heads.items()
        }
        return encoded, decoded, bart.project(params, decoded.features), classes

    heads = {name: head.params for name, head in case.heads.items()}
    encoded, decoded, logits, classes = run(case.params, heads)
    real = source != case.config.pad_token_id
    real_target = previous != case.config.pad_token_id
    close(encoded.encoder_out, outputs["encoder_out"], real, "encoder_out")
    if classifies:
        close(classes["classification_head"], outputs["logits"], np.s_[:], "classes")
    else:
        close(logits, outputs["logits"], real_target, "logits")

    # transformers counts the final layer norm's output as the last hidden state.
    states = {"encoder_states": encoded.hidden_states, "decoder_states": decoded.hidden_states}
    if name == "transformers_mbart":
        states["encoder_states"] = (*encoded.hidden_states[:-1], encoded.encoder_out)
        states["decoder_states"] = (*decoded.hidden_states[:-1], decoded.features)
    for stack, ours in states.items():
        assert sum(key.startswith(f"{stack}.") for key in outputs) == len(ours)
        where = real if stack == "encoder_states" else real_target
        for i, state in enumerate(ours):
            close(state, outputs[f"{stack}.{i}"], where, f"{stack}.{i}")

    if name.startswith("fairseq"):
        close(decoded.features, outputs["features"], real_target, "features")
        mean = decoded.cross_attentions[-1].mean(axis=1)
        close(mean, outputs["cross_attention"], real_target, "cross_attention")
        close(classes["mood"], outputs["classes"], np.s_[:], "classes")
        return
    attentions = {
        "encoder_attentions": (encoded.attentions, real),
        "decoder_attentions": (decoded.self_attentions, real_target),
        "cross_attentions": (decoded.cross_attentions, real_target),
    }
    for stack, (ours, where) in attentions.items():
        for i, weights in enumerate(ours):
            heads_last = np.moveaxis(np.asarray(weights), 1, -1)
            theirs = np.moveaxis(outputs[f"{stack}.{i}"], 1, -1)
            close(heads_last, theirs, where, f"{stack}.{i}")


def test_head_of_transformers_keeps_its_labels(golden: Any, tmp_path: Path) -> None:
    case = read_case(golden, "transformers_classifier", tmp_path)
    head = case.heads["classification_head"]
    assert (head.labels, head.regression) == (["bad", "fair", "good"], False)
    assert case.config.pooler_dropout == 0.2


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients_of_the_cross_entropy(golden: Any, tmp_path: Path, name: str) -> None:
    case = read_case(golden, name, tmp_path)
    bart, ids = BART(case.config), case.ids
    real = ids["target"] != case.config.pad_token_id

    @jax.jit
    @jax.grad
    def gradient(params):
        encoded = bart.encode(params, ids["src_tokens"])
        features = bart.decode(params, ids["prev_output_tokens"], encoded).features
        log_probabilities = jax.nn.log_softmax(bart.project(params, features))
        picked = jnp.take_along_axis(log_probabilities, ids["target"][..., None], axis=-1)[..., 0]
        return -jnp.sum(picked * real)

    params = jax.tree.map(jnp.asarray, case.params)
    ours = {
        framework_name(case, path, leaf): tree.to_torch(leaf, array)
        for path, leaves in gradient(params).items()
        for leaf, array in leaves.items()
    }
    theirs = {k: g for k, g in case.gradients.items() if "classification_head" not in k}
    assert ours.keys() == theirs.keys()
    whole = np.sqrt(sum(float(np.sum(np.square(g))) for g in theirs.values()))
    for key, expected in theirs.items():
        difference = np.linalg.norm(ours[key] - expected)
        if key.endswith("k_proj.bias"):  # softmax ignores what all keys have in common
            assert np.linalg.norm(ours[key]) < 1e-6 * whole, key
        else:
            assert difference <= 1e-4 * np.linalg.norm(expected), key


def framework_name(case: Case, path: str, leaf: str) -> str:
    if case.name.startswith("fairseq"):
        special = {
            "embed_tokens": "encoder.embed_tokens.weight",
            "output_projection": "decoder.output_projection.weight",
        }
        return special.get(path) or tree.torch_name(path, leaf)
    return (
        "model.shared.weight" if path == "embed_tokens" else f"model.{tree.torch_name(path, leaf)}"
    )


@pytest.mark.parametrize("framework", ["fairseq", "transformers"])
def test_activation_functions(golden: Any, framework: str) -> None:
    recorded = golden("model/small.json")["activations"]
    x = jnp.asarray(recorded["x"])
    for name, expected in recorded[framework].items():
        ours = hk.testing.transform_and_run(lambda n=name: activate(x, Activation(n)))()
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    if framework == "transformers":
        assert set(recorded["transformers"]) == {a.value for a in Activation}


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_initialisation_is_fairseqs(golden: Any, kind: str) -> None:
    recorded = golden("model/small.json")["initialisation"]
    separate = {"share_all_embeddings": False, "share_decoder_input_output_embed": False}
    config = BARTConfig(**recorded["config"], **(separate if kind == "untied" else {}))
    head = ClassificationHead(config, 40).init(jax.random.key(2))
    params = BART(config).init(jax.random.key(1))
    ours = to_fairseq(params, config, {"mood": head})
    theirs = recorded["statistics"][kind]
    assert {k for k in ours if not k.endswith("version")} == theirs.keys()
    for name, expected in theirs.items():
        array = np.asarray(ours[name], np.float64)
        # Sampling error of a standard deviation: 1 / sqrt(2 n); five of those, theirs and ours.
        slack = 5 / np.sqrt(array.size) * expected["std"]
        assert abs(array.std() - expected["std"]) <= slack, name
        assert abs(array.mean() - expected["mean"]) <= 2 * slack, name
        assert np.abs(array).max() <= 1.3 * expected["largest"], name
        is_zero = "embed" in name and not array[1].any()
        assert is_zero == expected["pad_row_is_zero"], name
