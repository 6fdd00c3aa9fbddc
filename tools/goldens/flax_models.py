"""Small models as transformers' Flax saves them, and what it computes with them.

Runs in the interpreter of `.venv-peers`, which has transformers 4.57 and flax. `CASE/` holds the
files of weights, `cases.json` what `config.json` said, and `CASE.safetensors` the logits for its
ids. `per_head/params.dat` has the first case's weights in the layout of bart-base-jax.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
import transformers
from _recording import input_hash, write_arrays, write_json
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict

SMALL: dict[str, Any] = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 14,
    "decoder_start_token_id": 2,
    "forced_bos_token_id": None,
    "forced_eos_token_id": 2,
}
LABELS = {
    "id2label": {0: "bad", 1: "fair", 2: "good"},
    "label2id": {"bad": 0, "fair": 1, "good": 2},
}
# name: (class, config beyond SMALL, dtype, bytes of a shard)
CASES: dict[str, tuple[str, dict[str, Any], Any, str]] = {
    "bart": ("BartForConditionalGeneration", {}, np.float32, "10GB"),
    "sharded": ("BartForConditionalGeneration", {}, np.float32, "8KB"),
    "half": ("BartForConditionalGeneration", {}, jax.numpy.bfloat16, "10GB"),
    "trunk": ("BartModel", {}, np.float32, "10GB"),
    "untied": ("BartForConditionalGeneration", {"tie_word_embeddings": False}, np.float32, "10GB"),
    "classifier": ("BartForSequenceClassification", LABELS, np.float32, "10GB"),
    "mbart": ("MBartForConditionalGeneration", {"scale_embedding": True}, np.float32, "10GB"),
}
IDS = [[0, 7, 9, 5, 2], [0, 8, 2, 1, 1]]
PREVIOUS = [[2, 0, 7, 11, 5], [2, 0, 6, 1, 1]]


def random_params(like: Any, dtype: Any, seed: int) -> Any:
    """Values that matter, for biases and layer norms too."""
    rng = np.random.default_rng(seed)
    flat = {}
    for name, leaf in sorted(flatten_dict(like).items()):
        noise = 0.3 * rng.standard_normal(leaf.shape, np.float32)
        flat[name] = (noise + (name[-1] == "scale")).astype(dtype)
    return unflatten_dict(flat)


def per_head(params: Any, heads: dict[str, int]) -> dict[str, Any]:
    """The tree of bart-base-jax."""

    def attention(p: Any, count: int) -> dict[str, Any]:
        width = p["q_proj"]["bias"].shape[0]
        split = (count, width // count)
        parts: dict[str, Any] = {
            name: {
                "kernel": p[name]["kernel"].reshape(width, *split),
                "bias": p[name]["bias"].reshape(split),
            }
            for name in ("q_proj", "k_proj", "v_proj")
        }
        out = p["out_proj"]
        parts["ff"] = {"kernel": out["kernel"].reshape(*split, width), "bias": out["bias"]}
        return parts

    def layer(p: Any, count: int) -> dict[str, Any]:
        found = {}
        for theirs, name in (("self_attn", "self_attn"), ("encoder_attn", "cross_attn")):
            if theirs in p:
                found[name] = attention(p[theirs], count)
                found[f"{name}_layer_norm"] = p[f"{theirs}_layer_norm"]
        found |= {"ff0": p["fc1"], "ff1": p["fc2"], "final_layer_norm": p["final_layer_norm"]}
        return found

    tree: dict[str, Any] = {"embedding": params["shared"]}
    for side, count in heads.items():
        p = params[side]
        tree[f"{side}_embed_positions"] = p["embed_positions"]["embedding"]
        tree[f"{side}_embed_layer_norm"] = p["layernorm_embedding"]
        layers = sorted(p["layers"], key=int)
        tree[f"{side}_layers"] = [layer(p["layers"][i], count) for i in layers]
    return tree


def main(out: Path) -> None:
    cases: dict[str, Any] = {}
    for name, (kind, fields, dtype, shard) in CASES.items():
        config_class = getattr(
            transformers, kind.partition("For")[0].removesuffix("Model") + "Config"
        )
        config = config_class(**{**SMALL, **fields})
        model = getattr(transformers, f"Flax{kind}")(config, input_shape=(1, 4))
        params = random_params(model.params, dtype, seed=3)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, params=params, max_shard_size=shard)
            weights = sorted(Path(folder).glob("*flax_model*"))
            content = json.loads(Path(folder, "config.json").read_text())
            content.pop("transformers_version")
            (out / name).mkdir(parents=True)
            for path in weights:
                (out / name / path.name).write_bytes(path.read_bytes())
            index = out / name / "flax_model.msgpack.index.json"
            if index.exists():
                places = json.loads(index.read_text())
                write_json(index, places, input_hash(SMALL))
        ids, previous = np.array(IDS), np.array(PREVIOUS)
        arguments = {"attention_mask": (ids != 1).astype(np.int32), "params": params}
        if "Classification" not in kind:
            arguments["decoder_input_ids"] = previous
        result = model(ids, **arguments)[0]
        arrays = {"output": np.asarray(result, np.float32)}
        for path, leaf in flatten_dict(params, sep="/").items():
            arrays[path] = np.asarray(leaf).astype(np.float32)
        write_arrays(out / f"{name}.safetensors", arrays, input_hash(SMALL, fields, IDS))
        cases[name] = {"config": content, "dtype": np.dtype(dtype).name, "kind": kind}
        if name == "bart":
            heads = {side: SMALL[f"{side}_attention_heads"] for side in ("encoder", "decoder")}
            (out / "per_head").mkdir()
            tree = per_head(params["model"], heads)
            (out / "per_head" / "params.dat").write_bytes(msgpack_serialize(tree))
    content = {"cases": cases, "ids": IDS, "prev_output_tokens": PREVIOUS}
    write_json(out / "cases.json", content, input_hash(SMALL, IDS, PREVIOUS))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
