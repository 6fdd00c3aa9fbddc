"""Run by the oracle's interpreter: one trained model in every form that its users have files in.

`dialects.json` names the models' `weights` and `fields`, and the folders to write, which hold the
tokenizer already: fairseq's get a `model.pt`, transformers' what `save_pretrained` writes. What
transformers computes with the latter is in `FOLDER.safetensors` and, hypotheses, `generated.json`;
fairseq's are opened by `oracle_checkpoints.py`.
"""

import json
import re
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from _oracles import fairseq_bart, randomise
from fairseq import checkpoint_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models.bart.model import bart_large_architecture
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]
HEADS = {"sentence_classification_head": (3, 16), "wide": (2, 50)}


# --- fairseq --------------------------------------------------------------------------------------


def trained(folder: Path, about: dict[str, Any], heads: dict[str, tuple[int, int]]) -> Any:
    """The model of the fields with the trained weights, and heads with random ones."""
    model = fairseq_bart(about["fields"])
    tables = {"decoder.embed_tokens.weight", "decoder.output_projection.weight"}
    missing = model.load_state_dict(load_file(folder / about["weights"]), strict=False)
    assert set(missing.missing_keys) == tables and not missing.unexpected_keys, missing
    for seed, (name, (classes, inner)) in enumerate(heads.items()):
        model.register_classification_head(name, num_classes=classes, inner_dim=inner)
        randomise(model.classification_heads[name], seed)
    return model


def fused(state: State) -> State:
    """q, k and v in one tensor, as in 2019."""
    old: State = OrderedDict()
    for name, tensor in state.items():
        if match := re.fullmatch(r"(.+self_attn|.+encoder_attn)\.q_proj\.(weight|bias)", name):
            parts = [state[f"{match[1]}.{p}_proj.{match[2]}"] for p in "qkv"]
            old[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"\.[kv]_proj\.", name):
            old[name] = tensor
    return old


def with_copies(state: State) -> State:
    """An encoder layer's weights a second time, for PyTorch's fast path: filled at loading."""
    copies = OrderedDict(state)
    for name in state:
        if match := re.fullmatch(r"(encoder\.layers\.\d+)\.self_attn\.q_proj\.(weight|bias)", name):
            layer, kind = match.groups()
            parts = [state[f"{layer}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            copies[f"{layer}.in_proj_{kind}"] = torch.zeros_like(torch.cat(parts))
            for own, copy in (("self_attn.out_proj", "out_proj"), ("fc1", "fc1"), ("fc2", "fc2")):
                copies[f"{layer}.{copy}_{kind}"] = torch.zeros_like(state[f"{layer}.{own}.{kind}"])
    return copies


def without_versions(state: State) -> State:
    return OrderedDict((n, t) for n, t in state.items() if not n.endswith("version"))


def arguments(fields: dict[str, Any], **more: Any) -> Namespace:
    """What fairseq's trainer saved: everything, the architecture's defaults as well."""
    args = Namespace(**{**fields, "arch": "bart_large", "data": "data", "seed": 1})
    args.decoder_embed_dim = args.encoder_embed_dim
    del args.vocab_size
    bart_large_architecture(args)
    rest = {"task": "denoising", "criterion": "cross_entropy", "fp16": False}
    noise = {"mask": 0.3, "mask_random": 0.1, "mask_length": "span-poisson", "poisson_lambda": 3.5}
    noise |= {"replace_length": 1, "permute_sentences": 1, "insert": 0.0, "permute": 0.0}
    noise |= {"rotate": 0.0, "tokens_per_sample": 20, "sample_break_mode": "complete"}
    vars(args).update({**rest, **noise, **more})
    return args


def as_args(args: Namespace) -> dict[str, Any]:
    return {"args": args}


def as_cfg(args: Namespace) -> dict[str, Any]:
    """As the trainer of 2021: dictionaries, in which the model's node is a Namespace."""
    cfg = OmegaConf.to_container(convert_namespace_to_omegaconf(args))
    del cfg["task"]["bpe"]  # or fairseq's `from_pretrained` cannot set it, wherever it is
    return {"args": None, "cfg": {**cfg, "model": args}}


def as_cfg_of_omegaconf(args: Namespace) -> dict[str, Any]:
    cfg = as_cfg(args)["cfg"]
    del cfg["model"]
    nodes = OmegaConf.create(cfg, flags={"allow_objects": True})
    nodes["model"] = args
    return {"args": None, "cfg": nodes}


def unchanged(state: State) -> State:
    return state


# name: (what becomes of the state, of the arguments, dtype, heads, zip container)
FORMS: dict[str, tuple[Callable[[State], State], Callable[[Namespace], Any], Any, bool, bool]] = {
    "today": (unchanged, as_cfg_of_omegaconf, torch.float32, False, True),
    "of_2019": (fused, as_args, torch.float32, False, False),
    "of_2019_half": (fused, as_args, torch.float16, False, False),
    "of_2020": (unchanged, as_args, torch.float32, False, True),
    "copies": (with_copies, as_cfg, torch.float32, False, True),
    "brain_half": (unchanged, as_cfg_of_omegaconf, torch.bfloat16, False, True),
    "half": (unchanged, as_cfg, torch.float16, False, True),
    "heads": (unchanged, as_args, torch.float32, True, True),
    "languages": (unchanged, as_args, torch.float32, False, True),
}


def write_fairseq(folder: Path, place: str, form: str, about: dict[str, Any]) -> None:
    change, arrange, dtype, heads, zipped = FORMS[form]
    model = trained(folder, about, HEADS if heads else {}).to(dtype)
    state = change(model.state_dict())
    if form.startswith("of_2019") and not about["fields"].get("encoder_normalize_before"):
        state = without_versions(state)  # or fairseq leaves out the last layer norms
    more = {}
    if form == "languages":
        more = {"task": "multilingual_denoising", "langs": "en_XX,ro_RO", "add_lang_token": True}
        more |= {"train_subset": "train", "valid_subset": "valid"}  # where 0.12 looks for them
    history = {"criterion_name": "CrossEntropyCriterion", "optimizer_name": "FairseqAdam"}
    moments = {key: {"exp_avg": torch.ones(9), "exp_avg_sq": torch.ones(9)} for key in range(3)}
    content = {
        **arrange(arguments(about["fields"], **more)),
        "model": state,
        "optimizer_history": [{**history, "lr_scheduler_state": {"best": None}, "num_updates": 7}],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
        "last_optimizer_state": {"state": moments, "param_groups": []},
    }
    path = folder / place / "model.pt"
    if zipped:
        checkpoint_utils.torch_persistent_save(content, str(path))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=False)


# --- transformers ---------------------------------------------------------------------------------


def transformers_state(state: State) -> State:
    renamed = {f"model.{n}": t for n, t in state.items() if not n.endswith("version")}
    renamed["model.shared.weight"] = renamed.pop("model.encoder.embed_tokens.weight")
    return renamed


# name: (class, dtype, options of save_pretrained)
SAVED: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "safe": ("ForConditionalGeneration", torch.float32, {}),
    "sharded": ("ForConditionalGeneration", torch.float32, {"max_shard_size": "40KB"}),
    "torch": ("ForConditionalGeneration", torch.float32, {"safe_serialization": False}),
    "torch_sharded": (
        "ForConditionalGeneration",
        torch.float32,
        {"safe_serialization": False, "max_shard_size": "40KB"},
    ),
    "half": ("ForConditionalGeneration", torch.float16, {}),
    "brain_half": ("ForConditionalGeneration", torch.bfloat16, {"safe_serialization": False}),
    "classes": ("ForSequenceClassification", torch.float32, {}),
}


def positions(fields: dict[str, Any]) -> int:
    return max(fields[f"max_{side}_positions"] for side in ("source", "target"))


SEARCHED = ("safe", "half", "brain_half")  # the others have the weights of the first


def transformers_config(fields: dict[str, Any], kind: str) -> Any:
    options = {
        "vocab_size": fields["vocab_size"],
        "d_model": fields["encoder_embed_dim"],
        "max_position_embeddings": positions(fields),
        "activation_function": fields.get("activation_fn", "gelu"),
        "scale_embedding": not fields.get("no_scale_embedding", True),
        "decoder_start_token_id": 2,
        "forced_bos_token_id": None,
        "forced_eos_token_id": None,
        "id2label": {0: "bad", 1: "fair", 2: "good"},
        "label2id": {"bad": 0, "fair": 1, "good": 2},
    }
    for side in ("encoder", "decoder"):
        options[f"{side}_layers"] = fields[f"{side}_layers"]
        options[f"{side}_attention_heads"] = fields[f"{side}_attention_heads"]
        options[f"{side}_ffn_dim"] = fields[f"{side}_ffn_embed_dim"]
    return getattr(transformers, f"{kind}Config")(**options)


def longer(table: torch.Tensor, rows: int) -> torch.Tensor:
    """A position table of so many rows, of which the last are never looked at."""
    return torch.cat([table, torch.zeros(rows - len(table), table.shape[1])])


def write_transformers(
    folder: Path, place: str, form: str, about: dict[str, Any], ids: list[Any], search: Any
) -> Any:
    """Save the model, open it again, and compute: (arrays, hypotheses if there is a `search`)."""
    suffix, dtype, options = SAVED[form]
    fields, kind = about["fields"], about["kind"]
    made = getattr(transformers, kind + suffix)(transformers_config(fields, kind))
    state = transformers_state(load_file(folder / about["weights"]))
    rows = positions(fields) + 2
    for side in ("encoder", "decoder"):
        name = f"model.{side}.embed_positions.weight"
        state[name] = longer(state[name], rows)
    missing, unexpected = made.load_state_dict(state, strict=False)
    new = [n for n in missing if not re.search("embed_tokens|lm_head|logits_bias", n)]
    # What the trained model has not: an mBART's first layer norms, a classifier's head.
    assert not unexpected and all(re.search("layernorm_emb|classification", n) for n in new), new
    if suffix == "ForSequenceClassification":
        randomise(made.classification_head, seed=3)
    made.tie_weights()
    made.to(dtype).save_pretrained(folder / place, **options)
    model = type(made).from_pretrained(folder / place, dtype=torch.float32).eval()
    source, previous = (torch.tensor(rows) for rows in ids)
    mask = source.ne(1).long()
    arguments = {"input_ids": source, "attention_mask": mask}
    if suffix == "ForSequenceClassification":
        features = model.model(**arguments, decoder_input_ids=previous)[0]
        return {"classes": model(**arguments).logits, "features": features}, []
    arrays = {"logits": model(**arguments, decoder_input_ids=previous).logits}
    found = []
    for row in about["sources"] if search else []:
        result = model.generate(
            torch.tensor([row]),
            num_beams=search["beam"],
            num_return_sequences=search["beam"],
            max_new_tokens=search["max_len_b"] + 1,
            min_new_tokens=search["min_len"],
            length_penalty=1.0,
            early_stopping=search["early_stopping"],
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
        )
        sequences = [[t for t in s if t != 1] for s in result.sequences[:, 1:].tolist()]
        found.append(list(zip(sequences, result.sequences_scores.tolist(), strict=True)))
    return arrays, found


def main(folder: Path) -> None:
    given = json.loads((folder / "dialects.json").read_text())
    generated = {}
    for place, (name, form) in given["fairseq"].items():
        write_fairseq(folder, place, form, given["models"][name])
    for place, (name, form) in given["transformers"].items():
        about = given["models"][name]
        arrays, generated[place] = write_transformers(
            folder, place, form, about, about["ids"], given["options"] if form in SEARCHED else {}
        )
        save_file({k: v.contiguous() for k, v in arrays.items()}, folder / f"{place}.safetensors")
    (folder / "generated.json").write_text(json.dumps(generated))


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]))
