"""The model directory: Hugging Face's `config.json` and `model.safetensors`, read and written.

`transformers` opens what `write_model` writes and computes the same (`flax_model.msgpack` opens in
its Flax models, and `params.dat` in those of `per_head.py`). What its format has no place
for stays beside it: named classification heads in `heads.safetensors`, everything else in
`bart_hk.json`. A BART whose structure transformers cannot express at all is written with the model
type `bart_hk`, which transformers refuses instead of computing something else.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_dtypes import bfloat16

from bart_hk.checkpoint import files, tree
from bart_hk.checkpoint.flax import FLAX_WEIGHTS, flax_lacks, flax_tensors
from bart_hk.checkpoint.huggingface_config import (
    GENERATION_IDS,
    SEARCH,
    beyond_json,
    config_from_json,
    config_to_json,
    generation_to_json,
    transformers_lacks,
)
from bart_hk.checkpoint.model_files import HeadFiles, ModelFiles
from bart_hk.checkpoint.msgpack_file import ArrayFile, write_arrays
from bart_hk.checkpoint.per_head import (
    PER_HEAD_WEIGHTS,
    PerHeadNames,
    per_head_lacks,
    per_head_tree,
)
from bart_hk.checkpoint.tree import Params
from bart_hk.checkpoint.weights import LAYOUTS, WEIGHTS, Weights, float_dtype, write_weights
from bart_hk.config import Activation, BARTConfig
from bart_hk.errors import CheckpointError, shown

Place = Callable[[np.ndarray], Any]
Tensors = dict[str, files.MakeTensor]

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
HEADS = "heads.safetensors"
EXTRAS = "bart_hk.json"

_FORMAT = 1  # of bart_hk.json
# Keys in `extras` of what we keep for transformers alone.
_OTHER_GENERATION = "generation_config"
_MODEL_TYPE = "model_type"  # "plbart", which computes what a BART does
_HEAD_PREFIX = "classification_head"  # of the head's tensors in a BartForSequenceClassification
UNNAMED_HEAD = "classification_head"  # what we call such a head if `bart_hk.json` does not say
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
# What transformers' xIELU stores beside its parameters, and never changes.
_CONSTANTS = {"beta": bfloat16(0.5), "eps": bfloat16(-1e-6)}

# Tasks whose heads no BartForSequenceClassification can hold.
_OF_EVERY_TOKEN = ("token_classification", "question_answering")
# What `read_model` and `write_model` make of bart_hk.json themselves; the rest is the caller's.
_OWN_EXTRAS = ("format", "config", "transformers_lacks", "heads", "head", "heads_file")


# --- Reading --------------------------------------------------------------------------------------


def read_model(directory: str | Path, dtype: Any = None, place: Place | None = None) -> ModelFiles:
    """Read a model directory, ours or Hugging Face's.

    `model.safetensors` may hold a (M)BartModel, a (M)BartForConditionalGeneration or a
    (M)BartForSequenceClassification, whose head is then called "classification_head" unless
    `bart_hk.json` names it. Weights are mapped and read one tensor at a time.

    Args:
        directory: may be a single file in the layout of `per_head.py`; where no config.json is
            beside it, the config follows from its shapes.
        dtype: of the parameters, such as "float32" or "bfloat16"; as stored if None.
        place: what becomes of each parameter (heads apart) before the next one is read, such as
            `jax.device_put`; so a model is not in memory twice. The array is nobody else's.

    Raises:
        FileNotFoundError: the directory or one of its files is missing.
        CheckpointError: a file is damaged, or config and weights do not fit; names the tensor.
        ValueError: no model has such a `dtype`.
    """
    directory = Path(directory)
    if dtype is not None:
        dtype = float_dtype(dtype)
    try:
        return _read_model(directory, dtype, place)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(" ".join(str(error).split("\n"))) from None
    except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # A value in the JSON is of a kind that none of its readers expects.
        reason = f"{type(error).__name__}: {shown(str(error))}"
        raise CheckpointError(f"{directory}: {CONFIG} or {EXTRAS} is damaged ({reason})") from None


def _read_model(directory: Path, dtype: Any, place: Place | None) -> ModelFiles:
    weights_from = directory
    if directory.is_file():
        if not (directory.parent / CONFIG).exists():
            return _read_without_config(directory, dtype, place)
        directory = directory.parent
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

    weights = Weights(weights_from, dtype)
    stored_heads = extras.get("heads", {})
    main_head = extras.get("head") or UNNAMED_HEAD
    if extras.get("heads_file"):
        weights.add(files.TensorFile(directory / HEADS))
    generates = "ForConditionalGeneration" in str(content.get("architectures"))
    if not (generates or "lm_head.weight" in weights.names()):
        # A trunk without an output layer: the target table is as good as any.
        config = config.replace(share_decoder_input_output_embed=True)
    _check_vocabulary(config, weights)
    layers = {f"{side}_layers": getattr(config, f"{side}_layers") for side in config.sides}
    if sum(layers.values()) > len(weights.names()):
        said = " and ".join(f"{name}={count}" for name, count in layers.items())
        raise ValueError(
            f"{directory / CONFIG} says {said}; there are {len(weights.names())} tensors"
        )
    if "final_logits_bias" not in beyond and "final_logits_bias" in weights.names():
        bias = weights.read("final_logits_bias", (1, config.vocab_size))
        config = config.replace(final_logits_bias=bool(np.any(bias)))
    used: set[str] = set()
    params = _read_params(config, weights, used, place)
    heads = {}
    classifies = f"{_HEAD_PREFIX}.out_proj.weight" in weights.names()
    if classifies:
        stored_heads = {main_head: _head_from_json(content, weights), **stored_heads}
    for head, about in stored_heads.items():
        main = classifies and head == main_head
        prefix = _HEAD_PREFIX if main else f"classification_heads.{head}"
        heads[head] = _read_head(config, weights, used, prefix, about)
    for name, constant in _constants(config).items():
        found = weights.read(name, ()).astype(float)
        if not np.isclose(found, float(constant), rtol=0.1, atol=0):  # float16 has few such numbers
            raise ValueError(f"{directory}: {name} is {found}; in every xIELU it is {constant}")
        used.add(name)
    _check_unused(weights, used)
    more = {key: value for key, value in extras.items() if key not in _OWN_EXTRAS}
    not_settings = {*GENERATION_IDS, "_from_model_config", "transformers_version"}
    others = {name: content[name] for name in SEARCH if name in content}
    if generation is not None:
        others = {k: v for k, v in generation.items() if k not in not_settings}
    if others:
        more[_OTHER_GENERATION] = others
    if content.get("model_type") == "plbart":
        more[_MODEL_TYPE] = "plbart"
    return ModelFiles(config, params, heads, more)


def _read_without_config(path: Path, dtype: Any, place: Place | None) -> ModelFiles:
    weights = Weights(path, dtype)
    config, used = PerHeadNames(ArrayFile(path)).config(), set[str]()
    if config.encoder_layers + config.decoder_layers > len(weights.names()):
        raise ValueError(f"{path}: more layers than tensors")
    params = _read_params(config, weights, used, place)
    _check_unused(weights, used)
    return ModelFiles(config, params)


def _constants(config: BARTConfig) -> dict[str, Any]:
    """The tensors of a model that are no parameters."""
    if config.activation_fn != Activation.xielu:
        return {}
    return {
        f"{side}.layers.{i}.activation_fn.{name}": constant
        for side in config.sides
        for i in range(getattr(config, f"{side}_layers"))
        for name, constant in _CONSTANTS.items()
    }


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
    config: BARTConfig, weights: Weights, used: set[str], place: Place | None
) -> Params:
    """The parameters of `config`; the names of their tensors are added to `used`."""
    stored = weights.names()

    def read(path: str, name: str, shape: tuple[int, ...]) -> Any:
        tensor = _stored_name(path, name, stored)
        used.add(tensor)
        if path == "final_logits_bias":
            array = weights.read(tensor, (1, *shape))[0]
        else:
            torch_shape = shape[::-1] if name == "w" else shape
            array = tree.from_torch(name, weights.read(tensor, torch_shape))
        return array if place is None else tree.place_mapped(array, place)

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
    multi_label = bool(about.get("multi_label", False))
    params = tree.head_from_torch(tensors)
    return HeadFiles(params, about["labels"], about["regression"], multi_label)


def _check_vocabulary(config: BARTConfig, weights: Weights) -> None:
    path = "embed_tokens" if config.share_all_embeddings else f"{config.sides[-1]}/embed_tokens"
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
        "multi_label": kind == "multi_label_classification",
    }


def _check_unused(weights: Weights, used: set[str]) -> None:
    """Refuse tensors of another structure; warn of layers that are not a BART's."""
    unused = weights.names() - used - _COPIES
    of_trunk = sorted(n for n in unused if n.startswith(("encoder.", "decoder.", "bottleneck.")))
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
    layout: str = WEIGHTS,
    also: Callable[[Path], None] | None = None,
    max_shard_size: int | None = None,
) -> None:
    """Write a model directory that transformers and `read_model` open.

    What was there before stays whole until all of the new one is on the disk.

    Args:
        params: as `tree.parameter_shapes(config)`, numpy's or jax's arrays, of any float dtype.
        heads: named classification heads.
        extras: more for `bart_hk.json`, such as generation defaults; `read_model` returns them.
            "generation_config" goes to `generation_config.json`, a "model_type" of "plbart" to
            `config.json`.
        head: the name of a head; then a (M)BartForSequenceClassification with that head is written
            instead of a (M)BartForConditionalGeneration.
        layout: the file of weights: "model.safetensors", "flax_model.msgpack" or "params.dat".
        also: writes more files (a tokenizer's) into the folder it gets; they are part of the save.
        max_shard_size: bytes of tensors in a file, unless a single one has more; more than that
            become shards with an index, as transformers writes them. Not into a directory that has
            a `model.safetensors`, which readers would prefer.

    Raises:
        ValueError: parameters and config do not fit; `head` is unknown or not transformers' kind;
            shards would lie beside a `model.safetensors`; the layout cannot say what is in it.
        FileExistsError: the directory has weights in a layout that readers would prefer.
        OSError: the folder cannot be written or the disk is full; the previous model is unchanged.
    """
    directory, heads = Path(directory), dict(heads or {})
    if head is not None and head not in heads:
        raise ValueError(f"no head {head!r}; there are: {', '.join(sorted(heads)) or 'none'}")
    task = (extras or {}).get("training", {}).get("task")
    if head is not None and len(heads) == 1 and task in _OF_EVERY_TOKEN:
        raise ValueError(
            f"the head {head!r} reads every token (task={task}), and transformers' "
            "BartForSequenceClassification the last </s>: leave the head out, it is kept beside"
        )
    tree.check_parameters(params, config)
    dtype = str(np.dtype(params[f"{config.sides[0]}/layers_0/fc1"]["w"].dtype))
    main, beside = stored_tensors(config, params, heads, head)
    about = {
        name: {
            "num_classes": h.num_classes,
            "inner_dim": h.inner_dim,
            "labels": h.labels,
            "regression": h.regression,
            "multi_label": h.multi_label,
        }
        for name, h in heads.items()
    }
    own = {
        "format": _FORMAT,
        "config": beyond_json(config),
        "transformers_lacks": transformers_lacks(config),
        "heads": about,
        "head": head,
        "heads_file": bool(beside),
    }
    if max_shard_size is not None and (directory / layout).exists():
        raise ValueError(f"{directory} holds a {layout}; write shards into another folder")
    more = dict(extras or {})
    generation = {**more.pop(_OTHER_GENERATION, {}), **generation_to_json(config)}
    plbart = more.pop(_MODEL_TYPE, None) == "plbart"
    content = config_to_json(config, heads[head] if head else None, dtype, plbart=plbart)
    for name in LAYOUTS[: LAYOUTS.index(layout)]:  # which a reader would take
        if (directory / name).exists() or (directory / f"{name}.index.json").exists():
            raise FileExistsError(f"{directory} has a {name} already; name another directory")
    write = _fitted(config, main, plbart, layout, max_shard_size)
    with files.replacing(directory) as staging:
        files.write_json(staging / CONFIG, content)
        files.write_json(staging / GENERATION_CONFIG, generation)
        files.write_json(staging / EXTRAS, {**own, **more})
        write(staging)
        if beside:
            files.write_tensors(staging / HEADS, beside)
        if also:
            also(staging)
    if not beside:
        (directory / HEADS).unlink(missing_ok=True)


def _fitted(
    config: BARTConfig, main: Tensors, plbart: bool, layout: str, max_shard_size: int | None
) -> Callable[[Path], None]:
    """What writes the weights into a folder; ValueError if the layout has no place for them."""
    if layout == FLAX_WEIGHTS:
        if lacking := flax_lacks(config, plbart):
            raise ValueError(f"transformers has {lacking}; write it with --to hf")
        main = flax_tensors(config, main)
    if layout != PER_HEAD_WEIGHTS:
        return partial(write_weights, tensors=main, max_shard_size=max_shard_size, layout=layout)
    if lacking := per_head_lacks(config):
        raise ValueError(f"bart-base-jax has no BART with {lacking}; write it with --to native")
    if max_shard_size is not None:
        raise ValueError("bart-base-jax has one file of weights: write it without max_shard_size")
    return lambda folder: write_arrays(folder / layout, per_head_tree(config, main))


def stored_tensors(
    config: BARTConfig,
    params: Mapping[str, Mapping[str, Any]],
    heads: Mapping[str, HeadFiles],
    head: str | None,
) -> tuple[Tensors, Tensors]:
    """The tensors of `model.safetensors` and of `heads.safetensors`, made when they are written."""
    main: Tensors = {}
    beside: Tensors = {}
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
    for name, constant in _constants(config).items():
        main[f"model.{name}"] = partial(np.asarray, constant)
    if not config.share_all_embeddings and len(config.sides) == 2:
        # transformers has a third table, which nothing reads once these two are loaded.
        main["model.shared.weight"] = main["model.encoder.embed_tokens.weight"]
        if config.share_decoder_input_output_embed and not head:
            main["lm_head.weight"] = main["model.decoder.embed_tokens.weight"]
    if not config.final_logits_bias and not head:
        table = params[f"{config.sides[0]}/layers_0/fc1"]["w"]
        main["final_logits_bias"] = partial(np.zeros, (1, config.vocab_size), table.dtype)
    for name, files_of_head in heads.items():
        for leaf, array in tree.head_to_torch(files_of_head.params).items():
            if name == head:
                main[f"{_HEAD_PREFIX}.{leaf}"] = partial(np.asarray, array)
            else:
                beside[f"classification_heads.{name}.{leaf}"] = partial(np.asarray, array)
    return main, beside
