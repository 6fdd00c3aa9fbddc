"""What small BARTs of random weights compute: in fairseq, and in transformers.

`cases.json` names for each case its framework, its config and its ids. `CASE.safetensors` holds the
weights under the framework's names (`weights/...`), the gradient of the summed cross-entropy
(`gradients/...`) and what the forward pass gives (`outputs/...`); `weights` of a tied table are
stored once. `small.json` has activation functions and fairseq's initialisation.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from _oracles import cross_entropy, fairseq_bart, randomise
from _recording import input_hash, write_arrays, write_json
from fairseq import utils
from safetensors.numpy import load_file
from transformers.activations import ACT2FN

SMALL = {
    "vocab_size": 60,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_ffn_embed_dim": 20,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "max_source_positions": 14,
    "max_target_positions": 14,
}
PRE_NORM = {"encoder_normalize_before": True, "decoder_normalize_before": True}
SEPARATE = {"share_all_embeddings": False, "share_decoder_input_output_embed": False}
FAIRSEQ_CASES: dict[str, dict[str, Any]] = {
    "fairseq_post_norm": {"encoder_layers": 2},
    "fairseq_pre_norm": {**PRE_NORM, "no_scale_embedding": False},
    "fairseq_encoder_pre_norm": {"encoder_normalize_before": True},
    "fairseq_plain_embedding": {"layernorm_embedding": False, "no_scale_embedding": False},
    "fairseq_untied": SEPARATE,
    "fairseq_tied_output": {"share_all_embeddings": False},
    "fairseq_more_decoder": {"decoder_layers": 2, "activation_fn": "relu"},
    "fairseq_sinusoidal": {"encoder_learned_pos": False, "decoder_learned_pos": False},
    "fairseq_half_sinusoidal": {"decoder_learned_pos": False, "no_scale_embedding": False},
    "fairseq_positions": {"max_source_positions": 18, "activation_fn": "gelu_accurate"},
}
TRANSFORMERS_CASES: dict[str, dict[str, Any]] = {
    "transformers_bart": {"encoder_layers": 2, "activation_function": "gelu_new"},
    "transformers_pad_0": {
        "pad_token_id": 0,
        "bos_token_id": 51,
        "eos_token_id": 52,
        "decoder_start_token_id": 52,
        "forced_eos_token_id": 52,
        "activation_function": "silu",
    },
    "transformers_mbart": {"model_type": "mbart", "scale_embedding": True},
    "transformers_untied": {"tie_word_embeddings": False},
    "transformers_bias": {"bias": True},
    "transformers_classifier": {
        "id2label": {0: "bad", 1: "fair", 2: "good"},
        "label2id": {"bad": 0, "fair": 1, "good": 2},
        "classifier_dropout": 0.2,
    },
}
# Gradients take as much room as weights: those of the cases whose structure differs.
WITH_GRADIENTS = {
    "fairseq_post_norm",
    "fairseq_pre_norm",
    "fairseq_plain_embedding",
    "fairseq_untied",
    "fairseq_tied_output",
    "transformers_pad_0",
    "transformers_mbart",
}
LENGTHS = (9, 4, 7)  # of the sources; targets are two shorter
HEAD = "mood"


def make_ids(bos: int = 0, pad: int = 1, eos: int = 2) -> dict[str, list]:
    """Padded sources <s> ... </s>, and targets with the decoder's input for them."""
    rng = np.random.default_rng(11)

    def rows(lengths: list[int]) -> np.ndarray:
        ids = np.full((len(lengths), max(lengths)), pad)
        for row, length in zip(ids, lengths, strict=True):
            row[:length] = [bos, *rng.integers(6, 50, length - 2), eos]
        return ids

    source, target = rows(list(LENGTHS)), rows([n - 2 for n in LENGTHS])
    previous = np.roll(target, 1, axis=1)
    previous[:, 0] = eos
    return {
        "src_tokens": source.tolist(),
        "prev_output_tokens": previous.tolist(),
        "target": target.tolist(),
    }


def tensors(ids: dict[str, list]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.tensor(ids[k]) for k in ("src_tokens", "prev_output_tokens", "target"))


def arrays(kind: str, named: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {f"{kind}/{name}": tensor.detach().numpy() for name, tensor in named.items()}


def gradients(model: torch.nn.Module) -> dict[str, np.ndarray]:
    named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return arrays("gradients", named)


def record_fairseq(
    fields: dict[str, Any], ids: dict[str, list], with_gradients: bool
) -> dict[str, np.ndarray]:
    model = fairseq_bart({**SMALL, **fields})
    model.register_classification_head(HEAD, num_classes=3, inner_dim=8)
    model.eval()
    randomise(model, seed=5)
    source, previous, target = tensors(ids)
    # A copy: what fairseq ties, it stores under each of its names.
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits, extra = model(source, None, previous, return_all_hiddens=True)
    encoded = model.encoder(source, return_all_hiddens=True)
    outputs = {
        "logits": logits,
        "encoder_out": encoded["encoder_out"][0].transpose(0, 1),
        "features": model(source, None, previous, features_only=True)[0],
        "cross_attention": extra["attn"][0],  # last layer's, mean over heads
        # fairseq's classifier reads the decoder over the source.
        "classes": model(source, None, source, classification_head_name=HEAD)[0],
    }
    for i, state in enumerate(encoded["encoder_states"]):
        outputs[f"encoder_states.{i}"] = state.transpose(0, 1)
    for i, state in enumerate(extra["inner_states"]):
        outputs[f"decoder_states.{i}"] = state.transpose(0, 1)
    if with_gradients:
        cross_entropy(logits, target, model.encoder.padding_idx).backward()
    stored = arrays("weights", weights)
    copies = ["decoder.embed_tokens.weight"] if "share_all_embeddings" not in fields else []
    copies += [] if fields == SEPARATE else ["decoder.output_projection.weight"]
    for name in copies:
        stored.pop(f"weights/{name}")
    return {**stored, **gradients(model), **arrays("outputs", outputs)}


def transformers_config(changes: dict[str, Any]) -> transformers.PretrainedConfig:
    changes = {"encoder_layers": 1, "decoder_layers": 1, "model_type": "bart", **changes}
    config = transformers.AutoConfig.for_model(
        vocab_size=SMALL["vocab_size"],
        d_model=SMALL["encoder_embed_dim"],
        encoder_ffn_dim=SMALL["encoder_ffn_embed_dim"],
        decoder_ffn_dim=SMALL["decoder_ffn_embed_dim"],
        encoder_attention_heads=SMALL["encoder_attention_heads"],
        decoder_attention_heads=SMALL["decoder_attention_heads"],
        max_position_embeddings=SMALL["max_source_positions"],
        **changes,
    )
    config._attn_implementation = "eager"  # the one that returns attention weights
    return config


def record_transformers(
    changes: dict[str, Any], ids: dict[str, list], with_gradients: bool
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON files of the saved model, and its arrays."""
    changes = dict(changes)
    with_bias = changes.pop("bias", False)
    config = transformers_config(changes)
    classifies = "id2label" in changes
    kind = (
        transformers.AutoModelForSequenceClassification
        if classifies
        else transformers.AutoModelForSeq2SeqLM
    )
    model = kind.from_config(config).eval()
    randomise(model, seed=6)
    if with_bias:
        generator = torch.Generator().manual_seed(7)
        model.final_logits_bias = torch.randn(model.final_logits_bias.shape, generator=generator)
    source, previous, target = tensors(ids)
    if classifies:
        previous = source
    result = model(
        input_ids=source,
        attention_mask=source.ne(config.pad_token_id).long(),
        decoder_input_ids=previous,
        output_hidden_states=True,
        output_attentions=True,
    )
    outputs = {"logits": result.logits, "encoder_out": result.encoder_last_hidden_state}
    stacks = {
        "encoder_states": result.encoder_hidden_states,
        "decoder_states": result.decoder_hidden_states,
        "encoder_attentions": result.encoder_attentions,
        "decoder_attentions": result.decoder_attentions,
        "cross_attentions": result.cross_attentions,
    }
    for name, stack in stacks.items():
        outputs |= {f"{name}.{i}": tensor for i, tensor in enumerate(stack)}
    if with_gradients:
        cross_entropy(result.logits, target, config.pad_token_id).backward()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        weights = load_file(Path(folder) / "model.safetensors")
        files = {}
        for name in ("config.json", "generation_config.json"):
            if (Path(folder) / name).exists():
                files[name] = json.loads((Path(folder) / name).read_text())
                files[name].pop("transformers_version")
    stored = {f"weights/{name}": array for name, array in weights.items()}
    return files, {**stored, **gradients(model), **arrays("outputs", outputs)}


def record_activations() -> dict[str, Any]:
    """Every activation function of either framework, as it begins, over a grid."""
    x = torch.linspace(-12.0, 12.0, 49)
    available = sorted({*utils.get_available_activation_fns(), "relu_squared"})
    functions = {n: utils.get_activation_fn(n) for n in available}
    functions["swish"] = utils.get_activation_fn("swish")()  # a class, which its BART cannot call
    return {
        "x": x.tolist(),
        "fairseq": {n: function(x).tolist() for n, function in functions.items()},
        "transformers": {n: ACT2FN[n](x).tolist() for n in sorted(ACT2FN)},
    }


def record_initialisation() -> dict[str, Any]:
    """Statistics of fairseq's fresh parameters; those that are drawn are large enough to tell."""
    fields = {**SMALL, "vocab_size": 200, "encoder_embed_dim": 64, "encoder_ffn_embed_dim": 96}
    recorded = {}
    for name, more in {"tied": {}, "untied": SEPARATE}.items():
        torch.manual_seed(1)
        model = fairseq_bart({**fields, **more})
        model.register_classification_head(HEAD, num_classes=40)
        recorded[name] = {
            key: {
                "mean": value.mean().item(),
                "std": value.std(unbiased=False).item(),
                "largest": value.abs().max().item(),
                "pad_row_is_zero": "embed" in key and not value[1].any().item(),
            }
            for key, value in model.state_dict().items()
            if not key.endswith("version")
        }
    return {"config": fields, "statistics": recorded}


def main(out: Path) -> None:
    cases: dict[str, Any] = {}
    for name, fields in FAIRSEQ_CASES.items():
        ids = make_ids()
        cases[name] = {"framework": "fairseq", "config": {**SMALL, **fields}, **ids}
        recorded = record_fairseq(fields, ids, name in WITH_GRADIENTS)
        write_arrays(out / f"{name}.safetensors", recorded, input_hash(fields, ids))
    for name, changes in TRANSFORMERS_CASES.items():
        special = {key: changes.get(f"{key}_token_id") for key in ("bos", "pad", "eos")}
        ids = make_ids(**{k: v for k, v in special.items() if v is not None})
        files, recorded = record_transformers(changes, ids, name in WITH_GRADIENTS)
        cases[name] = {"framework": "transformers", "files": files, **ids}
        write_arrays(out / f"{name}.safetensors", recorded, input_hash(changes, ids))
    write_json(out / "cases.json", {"cases": cases}, input_hash(FAIRSEQ_CASES, TRANSFORMERS_CASES))
    small = {"activations": record_activations(), "initialisation": record_initialisation()}
    write_json(out / "small.json", small, input_hash(SMALL, SEPARATE))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
