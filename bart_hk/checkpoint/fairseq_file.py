"""fairseq's checkpoints: a `.pt` file becomes a model, and a model a folder that fairseq opens."""

import dataclasses
import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.checkpoint import fairseq, files, resize
from bart_hk.checkpoint.fairseq_config import (
    arguments,
    config_from_fairseq,
    layers_to_keep,
    settings_of,
)
from bart_hk.checkpoint.fairseq_shards import METADATA, join_shards, shard_paths
from bart_hk.checkpoint.model_files import HeadFiles, ModelFiles
from bart_hk.config import BARTConfig
from bart_hk.errors import CheckpointError
from bart_hk.text import TextEncoder
from bart_hk.text.fairseq_folder import (
    FILES,
    find_dictionary,
    misfit,
    read_languages,
    save_labels,
)
from bart_hk.torch_format import Namespace, read_torch, write_torch

CHECKPOINT = "model.pt"
TASK_HEAD = "sentence_classification_head"  # fairseq's name for a sentence_prediction task's head
_OURS = "bart_hk"  # key in the checkpoint of what fairseq has no place for
# What a model is made of: not the optimizer, nor `extra_state`, which may hold a second model.
_NEEDED = ("model", "args", "cfg", _OURS)

logger = logging.getLogger(__name__)


# --- Reading --------------------------------------------------------------------------------------


def read_fairseq(
    path: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    dictionary_size: int | None = None,
    labels: Sequence[str] | None = None,
) -> ModelFiles:
    """The BART in a fairseq checkpoint of any version; its optimizer and its EMA are not read.

    Parameters are views of the mapped file, in the dtype that is stored. `extras` holds "fairseq",
    what fairseq called the model's architecture and task, and for a multilingual model "langs", the
    languages whose symbols follow those of the dictionary.

    Args:
        path: the `.pt` file, or one that fairseq saved in shards beside it (`fairseq_shards.py`),
            or one of them. A bare state dict is taken for a BART of the published kind (see
            `config_from_fairseq`), if its width is a multiple of 64 or `overrides` gives the heads.
        overrides: fields of `BARTConfig` that change no size, and "arch".
        dictionary_size: symbols of the dictionary that the model shall work with, special ones
            included: see `fit_dictionary`. None leaves the model as it is.
        labels: names of the classes of the head that the checkpoint was fine-tuned with, as
            `read_labels` finds them in a data folder.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged or no BART's; one line, which names it and the reason.
        TypeError: an override is no field of `BARTConfig`.
    """
    path = Path(path)
    shards = shard_paths(path)
    # A bare state dict has none of these keys, and is needed whole.
    checkpoint = read_torch(shards[0] if shards else path, only=(*_NEEDED, METADATA))
    if isinstance(checkpoint, Mapping) and not checkpoint:
        checkpoint = read_torch(path)
    try:
        if shards and isinstance(checkpoint, dict):
            others = [read_torch(shard, only=("model", METADATA)) for shard in shards[1:]]
            checkpoint["model"] = join_shards([checkpoint, *others])
        model = model_from_checkpoint(checkpoint, overrides, path.parent)
        if dictionary_size is not None:
            model = fit_dictionary(model, dictionary_size)
    except ValueError as error:
        reason = " ".join(str(error).split())[:500]  # names in it may come from the file
        raise CheckpointError(f"{path}: {reason}") from None
    if not isinstance(checkpoint.get("model"), Mapping):
        logger.warning(
            "%s holds tensors without arguments: taken for a BART with %d heads and %s",
            path,
            model.config.encoder_attention_heads,
            model.config.activation_fn,
        )
    if labels is not None:
        name_labels(model, labels)
    return model


def model_from_checkpoint(
    checkpoint: Any, overrides: Mapping[str, Any] | None = None, folder: Path | None = None
) -> ModelFiles:
    """`read_fairseq` of the object in the file; its errors are ValueErrors without the name.

    `folder` is where a list of languages may be that the checkpoint names.
    """
    if not isinstance(checkpoint, Mapping) or not checkpoint:
        raise ValueError(f"it holds a {type(checkpoint).__name__}, not a fairseq checkpoint")
    state, settings = checkpoint.get("model"), None
    if isinstance(state, Mapping):
        settings = settings_of(checkpoint)
    else:
        state = checkpoint
    tensors = {n: t for n, t in state.items() if isinstance(n, str) and isinstance(t, np.ndarray)}
    if any(name.startswith(("model.shared.", "shared.")) for name in tensors):
        raise ValueError(
            "it holds the tensors of a Hugging Face model: name it pytorch_model.bin, put its "
            "config.json beside it, and give the folder"
        )
    if "encoder.embed_tokens.weight" not in tensors:
        known = ", ".join(files.shown(key) for key in list(state)[:3])
        raise ValueError(f"it is no fairseq BART: there is no encoder.embed_tokens, but {known}")
    tensors = fairseq.upgrade(tensors)
    for side in ("encoder", "decoder"):
        if kept := layers_to_keep(settings or {}, side):
            tensors = fairseq.keep_layers(tensors, side, kept)
            settings = {**(settings or {}), f"{side}_layers": len(kept)}
    config = config_from_fairseq(settings, tensors, overrides)
    ours = _ours(checkpoint)
    # What fairseq's arguments cannot say, unless somebody asks for something else now.
    beyond = ours.get("config", {})
    config = config.replace(**{k: v for k, v in beyond.items() if k not in (overrides or {})})
    params, heads = fairseq.from_fairseq(tensors, config)
    model = ModelFiles(config, params, {n: HeadFiles(p) for n, p in heads.items()})
    model.extras = {**ours.get("extras", {}), **_extras(settings or {}, folder)}
    _describe_heads(model, settings or {}, ours.get("heads", {}))
    return model


def _ours(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What `write_fairseq` added for us, as far as it is what it should be."""
    ours = checkpoint.get(_OURS)
    if not isinstance(ours, Mapping):
        return {}
    config = ours.get("config")
    kept = {
        name: value
        for name, value in (config.items() if isinstance(config, Mapping) else ())
        if name in _BEYOND and (value is None or type(value) is _BEYOND[name])
    }
    rest = {key: ours[key] for key in ("heads", "extras") if isinstance(ours.get(key), Mapping)}
    return {"config": kept, **rest}


def _extras(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """What fairseq called the model, and the languages that its task adds to the dictionary."""
    about = {
        name: settings[name]
        for name in ("arch", "task", "source_lang", "target_lang", "classification_head_name")
        if isinstance(settings.get(name), str)
    }
    extras: dict[str, Any] = {"fairseq": about} if about else {}
    # This task has an option of that name; other checkpoints may have the model's former one.
    longest = settings.get("max_positions")
    if about.get("task") == "sentence_prediction" and isinstance(longest, int):
        extras["max_positions"] = longest
    languages = settings.get("langs")
    if isinstance(languages, str):
        languages = languages.split(",")
    listed = settings.get("lang_dict")
    if not languages and isinstance(listed, str) and folder is not None:
        languages = read_languages(folder, listed)
    # Without the option, multilingual_denoising knows languages but has no symbols for them.
    if isinstance(languages, Sequence) and settings.get("add_lang_token", True):
        if languages and all(isinstance(code, str) for code in languages):
            extras["langs"] = list(languages)
    return extras


def _describe_heads(
    model: ModelFiles, settings: Mapping[str, Any], ours: Mapping[str, Any]
) -> None:
    task_head = settings.get("classification_head_name", TASK_HEAD)
    for name, head in model.heads.items():
        if name == task_head and head.num_classes == 1:
            head.regression = bool(settings.get("regression_target"))
        about = ours.get(name)
        if isinstance(about, Mapping):
            head.regression = bool(about.get("regression", head.regression))
            head.multi_label = bool(about.get("multi_label", False))
            labels = about.get("labels")
            if isinstance(labels, Sequence) and len(labels) == head.num_classes:
                head.labels = [str(label) for label in labels]


def name_labels(model: ModelFiles, labels: Sequence[str]) -> None:
    """Name the classes of the head that a task of fairseq's has, or of the only one.

    A head that has names keeps them. Where the numbers differ, a warning says so.
    """
    name = model.extras.get("fairseq", {}).get("classification_head_name", TASK_HEAD)
    if name not in model.heads and len(model.heads) == 1:
        (name,) = model.heads
    head = model.heads.get(name)
    if head is None or head.labels is not None or head.regression:
        return
    if len(labels) == head.num_classes:
        head.labels = list(labels)
    else:
        logger.warning(
            "label/dict.txt names %d classes, the head %r has %d: its classes stay without names",
            len(labels),
            name,
            head.num_classes,
        )


def fit_dictionary(model: ModelFiles, dictionary_size: int, seed: int = 1) -> ModelFiles:
    """The model with an embedding for each of `dictionary_size` symbols, as fairseq resizes it.

    One symbol less drops the last one, `<mask>`, as where a pretrained model learns to translate. A
    model of the multilingual_denoising task gets embeddings for more languages, before `<mask>`; in
    all tables and the output projection alike, where fairseq forgets the latter.

    Raises:
        ValueError: the dictionary does not fit; with both sizes and what may be wrong.
    """
    rows = model.config.vocab_size
    if dictionary_size == rows:
        return model
    if dictionary_size == rows - 1:
        params, config = resize.drop_last_symbol(model.params, model.config)
    elif (
        dictionary_size > rows
        and model.extras.get("fairseq", {}).get("task") == "multilingual_denoising"
    ):
        new = dictionary_size - rows
        params, config = resize.insert_symbols(
            model.params, model.config, new, before=rows - 1, seed=seed
        )
    else:
        raise ValueError(misfit(dictionary_size, rows))
    return dataclasses.replace(model, params=params, config=config)


def checkpoint_paths(directory: str | Path, checkpoint_file: str = CHECKPOINT) -> list[Path]:
    """The files that fairseq's `checkpoint_file` names: one, or several for an ensemble ("a:b").

    Raises:
        FileNotFoundError: one of them is missing; names it and the checkpoints that are there.
    """
    directory = Path(directory)
    paths = [directory / name for name in checkpoint_file.split(os.pathsep)]
    for path in paths:
        if not path.is_file() and not shard_paths(path):
            there = ", ".join(sorted(file.name for file in directory.glob("*.pt"))) or "none"
            raise FileNotFoundError(
                f"{directory} holds no {path.name} (checkpoints there: {there}); name it with "
                "checkpoint_file=..."
            )
    return paths


# --- Writing --------------------------------------------------------------------------------------

# What fairseq's arguments cannot express, or express otherwise.
_BEYOND = {
    "decoder_start_token_id": int,
    "forced_bos_token_id": int,
    "forced_eos_token_id": int,
    "unk_token_id": int,
    "activation_fn": str,
    "pooler_activation_fn": str,
}


def write_fairseq(
    directory: str | Path,
    config: BARTConfig,
    params: Mapping[str, Mapping[str, Any]],
    heads: Mapping[str, HeadFiles] | None = None,
    text: TextEncoder | None = None,
    *,
    extras: Mapping[str, Any] | None = None,
    checkpoint_file: str = CHECKPOINT,
) -> None:
    """Write a folder that fairseq's `BARTModel.from_pretrained` and `read_fairseq` open.

    It holds the checkpoint, the dictionary and the BPE files, and for heads with named classes
    `label/dict.txt`. fairseq starts decoding with `</s>` and forces `<s>`; another start, and what
    else it has no place for, is kept in the checkpoint for us. What was there before stays whole
    until all of the new is on the disk.

    Args:
        params: as `tree.parameter_shapes(config)`, numpy's or jax's arrays, of any float dtype.
        heads: named classification heads.
        text: the tokenizer, one symbol for each embedding at most; without it the folder holds the
            checkpoint alone, which fairseq cannot open.
        extras: what `read_fairseq` gives back in its `extras`.
        checkpoint_file: the name of the checkpoint.

    Raises:
        ValueError: parameters and config do not fit, or fairseq has no such model or tokenizer.
        OSError: the folder cannot be written or the disk is full; the previous model is unchanged.
    """
    directory, heads = Path(directory), dict(heads or {})
    extras = dict(extras or {})
    for name in heads:
        if "." in name:
            raise ValueError(
                f"fairseq takes the dot in a head's name for the name's end: {name!r}; load the "
                f"model, register the head as {name.replace('.', '_')!r}, and save that"
            )
    state = fairseq.to_fairseq(params, config, {name: h.params for name, h in heads.items()})
    named = [name for name, head in heads.items() if head.labels]
    labelled = TASK_HEAD if TASK_HEAD in named else named[0] if named else None
    with files.replacing(directory) as staging:
        languages, masks = extras.get("langs", []), True
        if text is not None:
            languages, masks = text.save_fairseq(staging, config.vocab_size)
        task = "multilingual_denoising" if languages else "denoising" if masks else "translation"
        if labelled is not None:
            labels = heads[labelled].labels or []
            save_labels(staging, labels, find_dictionary(staging) if masks else None)
        args = arguments(config, task, languages) | _about_task(heads, labelled)
        content = _checkpoint(args, state)
        content[_OURS] = _for_us(config, args, state, heads, extras)
        write_torch(staging / checkpoint_file, content)
        written = {str(file.relative_to(staging)) for file in staging.rglob("*")}
    for name in set(FILES) - written:
        (directory / name).unlink(missing_ok=True)


def _about_task(heads: Mapping[str, HeadFiles], labelled: str | None) -> dict[str, Any]:
    """The arguments of a classification task, for the head that it would have in fairseq."""
    name = labelled or (TASK_HEAD if TASK_HEAD in heads else next(iter(heads), None))
    if name is None:
        return {}
    return {
        "classification_head_name": name,
        "num_classes": heads[name].num_classes,
        "regression_target": heads[name].regression,
    }


def _checkpoint(args: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A checkpoint as fairseq's trainer saves one, before the first update."""
    history = {
        "criterion_name": "CrossEntropyCriterion",
        "optimizer_name": "FairseqAdam",
        "lr_scheduler_state": {"best": None},
        "num_updates": 0,
    }
    return {
        "args": Namespace(args),
        "cfg": None,
        "model": OrderedDict(state),
        "criterion": None,
        "optimizer_history": [history],
        "task_state": {},
        "extra_state": {
            "train_iterator": {
                "version": 2,
                "epoch": 1,
                "iterations_in_epoch": 0,
                "shuffle": True,
            },
            "val_loss": None,
        },
        "last_optimizer_state": None,
    }


def _for_us(
    config: BARTConfig,
    args: Mapping[str, Any],
    state: Mapping[str, Any],
    heads: Mapping[str, HeadFiles],
    extras: Mapping[str, Any],
) -> dict[str, Any]:
    """What `read_fairseq` needs to give back what was written."""
    read_back = config_from_fairseq(args, fairseq.upgrade(state))
    beyond: dict[str, Any] = {}
    for name in _BEYOND:
        value = getattr(config, name)
        if value != getattr(read_back, name):
            beyond[name] = str(value) if isinstance(value, str) else value
    about = {
        name: {"labels": h.labels, "regression": h.regression, "multi_label": h.multi_label}
        for name, h in heads.items()
    }
    kept = {key: value for key, value in extras.items() if key not in ("fairseq", "langs")}
    return {"config": beyond, "heads": about, "extras": kept}
