"""The model directory: Hugging Face's `config.json` and `model.safetensors`, read and written.

`transformers` opens what `write_model` writes and computes the same. What its format has no place
for stays beside it: named classification heads in `heads.safetensors`, everything else in
`bart_hk.json`. A BART whose structure transformers cannot express at all is written with the model
type `bart_hk`, which transformers refuses instead of computing something else.
"""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.checkpoint import files, tree
from bart_hk.checkpoint.files import CheckpointError, shown
from bart_hk.checkpoint.model_files import HeadFiles, ModelFiles
from bart_hk.checkpoint.tree import Params
from bart_hk.checkpoint.weights import WEIGHTS, Weights, float_dtype
from bart_hk.config import BARTConfig

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
HEADS = "heads.safetensors"
EXTRAS = "bart_hk.json"

_FORMAT = 1  # of bart_hk.json
_OTHER_GENERATION = "generation_config"  # key in `extras` of what we keep for transformers alone
_HEAD_PREFIX = "classification_head"  # of the head's tensors in a BartForSequenceClassification
_UNNAMED_HEAD = "classification_head"  # what we call such a head if `bart_hk.json` does not say
# Copies of the embedding table that a tied model may store as well.
_COPIES = {
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "lm_head.weight",
    "final_logits_bias",
    "encoder.version",
    "decoder.version",
}

# The only map from our config to Hugging Face's. Their defaults for absent keys are BARTConfig's.
_KEYS = {
    "vocab_size": "vocab_size",
    "encoder_embed_dim": "d_model",
    "encoder_ffn_embed_dim": "encoder_ffn_dim",
    "encoder_layers": "encoder_layers",
    "encoder_attention_heads": "encoder_attention_heads",
    "decoder_ffn_embed_dim": "decoder_ffn_dim",
    "decoder_layers": "decoder_layers",
    "decoder_attention_heads": "decoder_attention_heads",
    "max_source_positions": "max_position_embeddings",
    "max_target_positions": "max_position_embeddings",
    "activation_fn": "activation_function",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "pooler_dropout": "classifier_dropout",
    "encoder_layerdrop": "encoder_layerdrop",
    "decoder_layerdrop": "decoder_layerdrop",
    "bos_token_id": "bos_token_id",
    "pad_token_id": "pad_token_id",
    "eos_token_id": "eos_token_id",
}
_DEFAULTS = BARTConfig()
_GENERATION_IDS = (
    "bos_token_id",
    "pad_token_id",
    "eos_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
# What `read_model` and `write_model` make of bart_hk.json themselves; the rest is the caller's.
_OWN_EXTRAS = ("format", "config", "transformers_lacks", "heads", "head", "heads_file")


# --- config.json ----------------------------------------------------------------------------------


def config_from_json(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> BARTConfig:
    """The BARTConfig of a `config.json` and, where there is one, a `generation_config.json`.

    As in transformers, the latter alone says which ids are forced, if it exists; a decoder start is
    taken from either.

    Raises:
        ValueError: no BART or mBART, or a value of the wrong type or range.
    """
    kind = config.get("model_type")
    if kind not in ("bart", "mbart", "bart_hk"):
        raise ValueError(f"model_type {kind!r} is not one that can be read: bart, mbart, bart_hk")
    values: dict[str, Any] = {}
    for field, key in _KEYS.items():
        default = getattr(_DEFAULTS, field)
        value = config.get(key, str(default) if isinstance(default, str) else default)
        kind_of_value = str if isinstance(default, str) else type(default)
        if kind_of_value is float and type(value) is int:
            value = float(value)
        if type(value) is not kind_of_value:  # exactly: a bool is an int to isinstance
            raise ValueError(f"{key} is {value!r}, which is no {kind_of_value.__name__}")
        values[field] = value
    values["no_scale_embedding"] = not config.get("scale_embedding", False)
    # Untied in transformers means that nothing is tied once weights have been loaded.
    tied = bool(config.get("tie_word_embeddings", True))
    values["share_all_embeddings"] = values["share_decoder_input_output_embed"] = tied
    values["encoder_normalize_before"] = values["decoder_normalize_before"] = kind == "mbart"
    # Hugging Face's tables begin with two unused rows whatever the padding id is.
    values["position_offset"] = 2
    fairseq_ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}.items()
    values["unk_token_id"] = 3 if fairseq_ids <= values.items() else None

    eos = values["eos_token_id"]
    start = config.get("decoder_start_token_id")
    forced_bos = config.get("forced_bos_token_id")
    if forced_bos is None and config.get("force_bos_token_to_be_generated"):  # its name in 2020
        forced_bos = values["bos_token_id"]
    forced_eos = config.get("forced_eos_token_id", eos)
    if generation is not None:
        start = generation.get("decoder_start_token_id", start)
        forced_bos = generation.get("forced_bos_token_id")
        forced_eos = generation.get("forced_eos_token_id")
    if isinstance(forced_eos, list):
        forced_eos = forced_eos[0]
    return BARTConfig(
        **values,
        decoder_start_token_id=eos if start is None else start,
        forced_bos_token_id=forced_bos,
        forced_eos_token_id=forced_eos,
    )


def transformers_lacks(config: BARTConfig) -> list[str]:
    """The fields of `config` whose values transformers' BART and mBART cannot express."""
    fields = []
    if config.encoder_normalize_before != config.decoder_normalize_before:
        fields.append("encoder_normalize_before")
    if not config.layernorm_embedding:
        fields.append("layernorm_embedding")
    if config.max_source_positions != config.max_target_positions:
        fields.append("max_source_positions")
    if config.position_offset != 2:
        fields.append("position_offset")
    return fields


def config_to_json(
    config: BARTConfig, head: HeadFiles | None = None, dtype: str = "float32"
) -> dict[str, Any]:
    """The `config.json` of a model for conditional generation or, with `head`, for classification.

    Raises:
        ValueError: transformers has no such classification head.
    """
    lacking = transformers_lacks(config)
    pre_norm = config.decoder_normalize_before
    kind = "bart_hk" if lacking else "mbart" if pre_norm else "bart"
    prefix = {"bart": "Bart", "mbart": "MBart", "bart_hk": "BartHk"}[kind]
    content: dict[str, Any] = {
        "architectures": [
            prefix + ("ForSequenceClassification" if head else "ForConditionalGeneration")
        ],
        "model_type": kind,
        "is_encoder_decoder": True,
        "torch_dtype": dtype,
    }
    for field, key in _KEYS.items():
        content.setdefault(key, getattr(config, field))
    content["activation_function"] = config.activation_fn.value
    content["scale_embedding"] = not config.no_scale_embedding
    content["tie_word_embeddings"] = config.share_all_embeddings
    content["num_hidden_layers"] = config.encoder_layers
    content["decoder_start_token_id"] = config.decoder_start_token_id
    # The model as such does not use these; converters of other runtimes (CTranslate2) ask for them.
    content["normalize_before"] = content["add_final_layer_norm"] = pre_norm
    content["normalize_embedding"] = config.layernorm_embedding
    if head:
        if head.inner_dim != config.encoder_embed_dim or config.pooler_activation_fn != "tanh":
            raise ValueError(
                "a head of transformers uses tanh and has the model's width inside; this one has "
                f"pooler_activation_fn={config.pooler_activation_fn} and inner_dim={head.inner_dim}"
                f", not {config.encoder_embed_dim}: save without head="
            )
        labels = head.labels or [f"LABEL_{i}" for i in range(head.num_classes)]
        content["id2label"] = {str(i): label for i, label in enumerate(labels)}
        content["label2id"] = {label: i for i, label in enumerate(labels)}
        content["problem_type"] = "regression" if head.regression else "single_label_classification"
    return content


def _generation_to_json(config: BARTConfig) -> dict[str, Any]:
    ids = {key: getattr(config, key) for key in _GENERATION_IDS}
    return {key: value for key, value in ids.items() if value is not None}


def _beyond_json(config: BARTConfig) -> dict[str, Any]:
    """The fields of `config` that the two JSON files would give back differently."""
    read_back = config_from_json(config_to_json(config), _generation_to_json(config))
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(read_back, field.name)
    }


# --- Reading --------------------------------------------------------------------------------------


def read_model(
    directory: str | Path, dtype: Any = None, place: Callable[[np.ndarray], Any] | None = None
) -> ModelFiles:
    """Read a model directory, ours or Hugging Face's.

    `model.safetensors` may hold a (M)BartModel, a (M)BartForConditionalGeneration or a
    (M)BartForSequenceClassification, whose head is then called "classification_head" unless
    `bart_hk.json` names it. Weights are mapped and read one tensor at a time.

    Args:
        dtype: of the parameters, such as "float32" or "bfloat16"; as stored if None.
        place: what becomes of each parameter (heads apart) before the next one is read, such as
            `jax.device_put`; so a model is not in memory twice.

    Raises:
        FileNotFoundError: the directory or one of its files is missing.
        CheckpointError: a file is damaged, or config and weights do not fit; names the tensor.
        ValueError: no model has such a `dtype`.
    """
    directory = Path(directory)
    if dtype is not None:
        dtype = float_dtype(dtype)
    try:
        return _read_model(directory, dtype, place or np.asarray)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(" ".join(str(error).split("\n"))) from None
    except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # A value in the JSON is of a kind that none of its readers expects.
        reason = f"{type(error).__name__}: {shown(str(error))}"
        raise CheckpointError(f"{directory}: {CONFIG} or {EXTRAS} is damaged ({reason})") from None


def _read_model(directory: Path, dtype: Any, place: Callable[[np.ndarray], Any]) -> ModelFiles:
    if not directory.is_dir():
        raise FileNotFoundError(f"no model directory {directory}")
    files.finish_replacing(directory)
    content = files.read_json(directory / CONFIG)
    generation = None
    if (directory / GENERATION_CONFIG).exists():
        generation = files.read_json(directory / GENERATION_CONFIG)
    extras = files.read_json(directory / EXTRAS) if (directory / EXTRAS).exists() else {}
    if extras.get("format", _FORMAT) != _FORMAT:
        raise ValueError(
            f"{directory / EXTRAS} has format {extras['format']}, this version reads {_FORMAT}: "
            "install a newer bart_hk"
        )
    beyond = extras.get("config", {})
    try:
        config = config_from_json(content, generation).replace(**beyond)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{directory / CONFIG}: {error}") from None

    weights = Weights(directory, dtype)
    stored_heads = extras.get("heads", {})
    main_head = extras.get("head") or _UNNAMED_HEAD
    if extras.get("heads_file"):
        weights.add(files.TensorFile(directory / HEADS))
    generates = "ForConditionalGeneration" in str(content.get("architectures"))
    if not (generates or "lm_head.weight" in weights.names()):
        # A trunk without an output layer: the target table is as good as any.
        config = config.replace(share_decoder_input_output_embed=True)
    _check_vocabulary(config, weights)
    if config.encoder_layers + config.decoder_layers > len(weights.names()):
        raise ValueError(
            f"{directory / CONFIG} says encoder_layers={config.encoder_layers} and "
            f"decoder_layers={config.decoder_layers}; there are {len(weights.names())} tensors"
        )
    if "final_logits_bias" not in beyond and "final_logits_bias" in weights.names():
        bias = weights.read("final_logits_bias", (1, config.vocab_size))
        config = config.replace(final_logits_bias=bool(np.any(bias)))
    used: set[str] = set()
    params = _read_params(config, weights, used, place)
    heads = {}
    if f"{_HEAD_PREFIX}.out_proj.weight" in weights.names():
        stored_heads = {main_head: _head_from_json(content, weights), **stored_heads}
    for head, about in stored_heads.items():
        prefix = _HEAD_PREFIX if head == main_head else f"classification_heads.{head}"
        heads[head] = _read_head(config, weights, used, prefix, about)
    _check_unused(weights, used)
    more = {key: value for key, value in extras.items() if key not in _OWN_EXTRAS}
    not_settings = {*_GENERATION_IDS, "_from_model_config", "transformers_version"}
    others = {k: v for k, v in (generation or {}).items() if k not in not_settings}
    if others:
        more[_OTHER_GENERATION] = others
    return ModelFiles(config, params, heads, more)


def _stored_name(path: str, name: str, stored: set[str]) -> str:
    """Which of the stored tensors holds a parameter; embeddings may come under several names."""
    both = ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight")
    candidates = {
        "embed_tokens": ("shared.weight", *both, "lm_head.weight"),
        "encoder/embed_tokens": ("encoder.embed_tokens.weight", "shared.weight"),
        "decoder/embed_tokens": ("decoder.embed_tokens.weight", "shared.weight"),
        "output_projection": ("lm_head.weight",),
        "final_logits_bias": ("final_logits_bias",),
    }.get(path) or (tree.torch_name(path, name),)
    return next((c for c in candidates if c in stored), candidates[0])


def _read_params(
    config: BARTConfig, weights: Weights, used: set[str], place: Callable[[np.ndarray], Any]
) -> Params:
    """The parameters of `config`; the names of their tensors are added to `used`."""
    stored = weights.names()

    def read(path: str, name: str, shape: tuple[int, ...]) -> Any:
        tensor = _stored_name(path, name, stored)
        used.add(tensor)
        if path == "final_logits_bias":
            return place(weights.read(tensor, (1, *shape))[0])
        torch_shape = shape[::-1] if name == "w" else shape
        return place(tree.from_torch(name, weights.read(tensor, torch_shape)))

    return tree.map_leaves(read, tree.parameter_shapes(config))


def _read_head(
    config: BARTConfig, weights: Weights, used: set[str], prefix: str, about: Mapping[str, Any]
) -> HeadFiles:
    """A head of which `about` tells what `bart_hk.json` holds; its tensors are added to `used`."""
    inner_dim, num_classes = about["inner_dim"], about["num_classes"]
    shapes = {
        "dense.weight": (inner_dim, config.encoder_embed_dim),
        "dense.bias": (inner_dim,),
        "out_proj.weight": (num_classes, inner_dim),
        "out_proj.bias": (num_classes,),
    }
    used |= {f"{prefix}.{name}" for name in shapes}
    tensors = {name: weights.read(f"{prefix}.{name}", shapes[name]) for name in shapes}
    return HeadFiles(tree.head_from_torch(tensors), about["labels"], about["regression"])


def _check_vocabulary(config: BARTConfig, weights: Weights) -> None:
    path = "embed_tokens" if config.share_all_embeddings else "decoder/embed_tokens"
    name = _stored_name(path, "embeddings", weights.names())
    rows = weights.shape(name)[0]
    if rows != config.vocab_size:
        raise ValueError(
            f"{weights.directory}: {CONFIG} says vocab_size={config.vocab_size}, but {name} in "
            f"{WEIGHTS} has {rows} rows; the two must be of one model"
        )


def _head_from_json(content: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """What `bart_hk.json` would say of the head that `config.json` describes."""
    inner_dim = weights.shape(f"{_HEAD_PREFIX}.dense.weight")[0]
    num_classes = weights.shape(f"{_HEAD_PREFIX}.out_proj.weight")[0]
    id2label = content.get("id2label") or {}
    labels = [id2label[key] for key in sorted(id2label, key=int)]
    named = len(labels) == num_classes and labels != [f"LABEL_{i}" for i in range(num_classes)]
    kind = content.get("problem_type") or ("regression" if num_classes == 1 else None)
    return {
        "num_classes": num_classes,
        "inner_dim": inner_dim,
        "labels": labels if named else None,
        "regression": kind == "regression",
    }


def _check_unused(weights: Weights, used: set[str]) -> None:
    """Refuse tensors of another structure; warn of layers that are not a BART's."""
    unused = weights.names() - used - _COPIES
    of_trunk = sorted(n for n in unused if n.startswith(("encoder.", "decoder.")))
    if of_trunk:
        raise ValueError(
            f"{weights.directory / WEIGHTS} holds {of_trunk[0]}, for which {CONFIG} has no place"
        )
    if unused:
        warnings.warn(f"{weights.directory}: not used: {', '.join(sorted(unused))}", stacklevel=3)


# --- Writing --------------------------------------------------------------------------------------


def write_model(
    directory: str | Path,
    config: BARTConfig,
    params: Mapping[str, Mapping[str, Any]],
    heads: Mapping[str, HeadFiles] | None = None,
    extras: Mapping[str, Any] | None = None,
    *,
    head: str | None = None,
    also: Callable[[Path], None] | None = None,
) -> None:
    """Write a model directory that transformers and `read_model` open.

    What was there before stays whole until all of the new one is on the disk.

    Args:
        params: as `tree.parameter_shapes(config)`, numpy's or jax's arrays, of any float dtype.
        heads: named classification heads.
        extras: more for `bart_hk.json`, such as generation defaults; `read_model` returns them.
            "generation_config" goes to `generation_config.json`.
        head: the name of a head; then a (M)BartForSequenceClassification with that head is written
            instead of a (M)BartForConditionalGeneration.
        also: writes more files (a tokenizer's) into the folder it gets; they are part of the save.

    Raises:
        ValueError: parameters and config do not fit; `head` is unknown or not transformers' kind.
        OSError: the folder cannot be written or the disk is full; the previous model is unchanged.
    """
    directory, heads = Path(directory), dict(heads or {})
    if head is not None and head not in heads:
        raise ValueError(f"no head {head!r}; there are: {', '.join(sorted(heads)) or 'none'}")
    tree.check_parameters(params, config)
    dtype = str(np.dtype(next(iter(params["decoder/embed_positions"].values())).dtype))
    main, beside = _tensors(config, params, heads, head)
    about = {
        name: {
            "num_classes": h.num_classes,
            "inner_dim": h.inner_dim,
            "labels": h.labels,
            "regression": h.regression,
        }
        for name, h in heads.items()
    }
    own = {
        "format": _FORMAT,
        "config": _beyond_json(config),
        "transformers_lacks": transformers_lacks(config),
        "heads": about,
        "head": head,
        "heads_file": bool(beside),
    }
    more = dict(extras or {})
    generation = {**more.pop(_OTHER_GENERATION, {}), **_generation_to_json(config)}
    content = config_to_json(config, heads[head] if head else None, dtype)
    with files.replacing(directory) as staging:
        files.write_json(staging / CONFIG, content)
        files.write_json(staging / GENERATION_CONFIG, generation)
        files.write_json(staging / EXTRAS, {**own, **more})
        files.write_tensors(staging / WEIGHTS, main)
        if beside:
            files.write_tensors(staging / HEADS, beside)
        if also:
            also(staging)
    if not beside:
        (directory / HEADS).unlink(missing_ok=True)


def _tensors(
    config: BARTConfig,
    params: Mapping[str, Mapping[str, Any]],
    heads: Mapping[str, HeadFiles],
    head: str | None,
) -> tuple[dict[str, files.MakeTensor], dict[str, files.MakeTensor]]:
    """The tensors of `model.safetensors` and of `heads.safetensors`, made when they are written."""
    main: dict[str, files.MakeTensor] = {}
    beside: dict[str, files.MakeTensor] = {}
    output = beside if head else main  # a classifier of transformers has no output projection
    for path, leaves in params.items():
        for name, array in leaves.items():
            make = partial(tree.to_torch, name, array)
            if path == "embed_tokens":
                main["model.shared.weight"] = make
            elif path == "output_projection":
                output["lm_head.weight"] = make
            elif path == "final_logits_bias":
                output["final_logits_bias"] = partial(lambda a: np.asarray(a)[None], array)
            else:
                main[f"model.{tree.torch_name(path, name)}"] = make
    if not config.share_all_embeddings:
        # transformers has a third table, which nothing reads once these two are loaded.
        main["model.shared.weight"] = main["model.encoder.embed_tokens.weight"]
        if config.share_decoder_input_output_embed and not head:
            main["lm_head.weight"] = main["model.decoder.embed_tokens.weight"]
    if not config.final_logits_bias and not head:
        table = params["decoder/embed_positions"]["embeddings"]
        main["final_logits_bias"] = partial(np.zeros, (1, config.vocab_size), table.dtype)
    for name, files_of_head in heads.items():
        for leaf, array in tree.head_to_torch(files_of_head.params).items():
            if name == head:
                main[f"{_HEAD_PREFIX}.{leaf}"] = partial(np.asarray, array)
            else:
                beside[f"classification_heads.{name}.{leaf}"] = partial(np.asarray, array)
    return main, beside
