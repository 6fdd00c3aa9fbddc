"""From what a user names to a model's files and its tokenizer, whatever format they are in."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from bart_hk import zoo
from bart_hk.checkpoint import resize
from bart_hk.checkpoint.fairseq_file import (
    CHECKPOINT,
    checkpoint_paths,
    fit_dictionary,
    name_labels,
    read_fairseq,
)
from bart_hk.checkpoint.fairseq_shards import shard_paths
from bart_hk.checkpoint.flax import FLAX_WEIGHTS
from bart_hk.checkpoint.huggingface import CONFIG, read_model
from bart_hk.checkpoint.model_files import ModelFiles
from bart_hk.checkpoint.per_head import PER_HEAD_WEIGHTS
from bart_hk.checkpoint.tree import parameter_shapes, place_leaves
from bart_hk.config import BARTConfig
from bart_hk.errors import CheckpointError
from bart_hk.hub.loaded import placing
from bart_hk.text import TextEncoder
from bart_hk.text.fairseq_folder import read_labels

Place = Callable[[np.ndarray], Any]


class Opened(NamedTuple):
    """The files of a model: of one, or of the members of an ensemble, which share a tokenizer."""

    members: list[ModelFiles]
    text: TextEncoder


def open_model(
    name_or_path: str | os.PathLike,
    checkpoint_file: str = CHECKPOINT,
    data_name_or_path: str | os.PathLike = ".",
    *,
    max_positions: int | None = None,
    new_symbols: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    place: Place | None = None,
    **where: Any,
) -> Opened:
    """Finds, reads and checks a model and its tokenizer; see `bart_hk.load` for the arguments.

    Args:
        overrides: fields of `BARTConfig`.
        place: what becomes of each tensor as soon as it is read, if nothing is to be resized; so
            that a model on its way to a device is never in memory twice.
        **where: `revision`, `cache_dir`, `force_reload`, `local_files_only` of `zoo.locate`.
    """
    if isinstance(new_symbols, str):
        raise TypeError(f"new_symbols is a list of names, such as [{new_symbols!r}]")
    if max_positions is not None or new_symbols:
        place = None
    directory, paths = _find(name_or_path, checkpoint_file, where)
    data = directory if directory.is_dir() else directory.parent
    if os.fspath(data_name_or_path) != ".":
        data = _data_folder(data, data_name_or_path, where)
    if paths is None:
        members = [_read_huggingface(directory, overrides or {}, place)]
        text = TextEncoder.load(data).fit(members[0].config.vocab_size)
        _check_sources(directory, members[0].config, text)
    else:
        members = [read_fairseq(path, overrides=overrides) for path in paths]
        text = _dictionary_of(members, directory, data, paths)
        if place is not None:
            for model in members:
                model.params = place_leaves(model.params, place)
    _check_ensemble(members, paths or [])
    for model in members:
        if model.config.unk_token_id is None:  # config.json has no place for it
            model.config = model.config.replace(unk_token_id=text.dictionary.unk_index)
        if max_positions is not None:
            model.params, model.config = resize.extend_positions(
                model.params, model.config, max_positions
            )
        if new_symbols:
            model.params, model.config = resize.insert_symbols(
                model.params, model.config, len(new_symbols), before=text.mask_id
            )
    if new_symbols:
        text = text.insert_symbols(new_symbols)
    return Opened(members, text)


def taking(dtype: np.dtype, device: jax.Device | None) -> Place:
    """What puts an array that nobody else has on `device` in `dtype`: on a CPU without copying it,
    where jax can take it over as it is (`checkpoint.files.aligned`)."""
    place = placing(dtype, device)

    def take(array: np.ndarray) -> jax.Array:
        if array.dtype != dtype:
            return place(array)
        # A copy is made in the background, and then memory of the next one is in use as well.
        return jax.block_until_ready(jax.device_put(array, device))

    return take


def _find(
    name_or_path: str | os.PathLike, checkpoint_file: str, where: Mapping[str, Any]
) -> tuple[Path, list[Path] | None]:
    """The model's folder, or a file that is a model; and its fairseq checkpoints, or None."""
    name = os.fspath(name_or_path)
    several = [Path(part) for part in name.split(os.pathsep)]
    if len(several) > 1 and "://" not in name and several[0].exists():
        if missing := [part for part in several if not part.is_file()]:
            raise FileNotFoundError(
                f"{missing[0]} of the ensemble {name} is no file; give each checkpoint's whole path"
            )
        return several[0].parent, several
    path = zoo.locate(name_or_path, **where)
    ours = (path if path.is_dir() else path.parent) / CONFIG
    if path.is_file():
        if path.suffix == Path(PER_HEAD_WEIGHTS).suffix:
            return path, None
        if path.suffix == Path(FLAX_WEIGHTS).suffix:
            return path.parent, None
        if path.suffix != ".pt" and ours.is_file():  # its model.safetensors or pytorch_model.bin
            return path.parent, None
        return path.parent, [path]
    if checkpoint_file == CHECKPOINT and ours.is_file():
        return path, None
    if checkpoint_file == CHECKPOINT and not (
        (path / CHECKPOINT).is_file() or shard_paths(path / CHECKPOINT)
    ):
        there = ", ".join(sorted(file.name for file in path.glob("*.pt")))
        hint = f"; name one of its checkpoints with checkpoint_file=...: {there}" if there else ""
        deeper = [found.parent for f in (CONFIG, CHECKPOINT) for found in path.glob(f"*/**/{f}")]
        if deeper and not there:
            hint = f"; but {deeper[0]} does: give that"
        raise FileNotFoundError(
            f"no model in {name}: {path} holds neither {CONFIG} (Hugging Face's format and "
            f"ours) nor {CHECKPOINT} (fairseq's){hint}"
        )
    return path, checkpoint_paths(path, checkpoint_file)


def _data_folder(directory: Path, name: str | os.PathLike, where: Mapping[str, Any]) -> Path:
    """Where the tokenizer's files are; as in fairseq relative to the model if it begins with '.'"""
    if os.fspath(name).startswith("."):
        return directory / name
    return zoo.locate(name, **{key: value for key, value in where.items() if key != "revision"})


def _read_huggingface(
    directory: Path, overrides: Mapping[str, Any], place: Place | None
) -> ModelFiles:
    model = read_model(directory, place=place)
    config = model.config.replace(**overrides)
    if parameter_shapes(config) != parameter_shapes(model.config):
        shapes = parameter_shapes(model.config)
        changed = [
            name
            for name, value in overrides.items()
            if parameter_shapes(model.config.replace(**{name: value})) != shapes
        ]
        values = ", ".join(f"{name}={getattr(model.config, name)}" for name in changed)
        raise ValueError(f"the model in {directory} has {values}; loading cannot change that")
    model.config = config
    return model


def _dictionary_of(
    members: list[ModelFiles], directory: Path, data: Path, paths: Sequence[Path]
) -> TextEncoder:
    """The tokenizer of fairseq checkpoints, to which they are fitted; labels get their names."""
    first = members[0]
    text = TextEncoder.load(data, first.extras.get("langs", []), bpe_directory=directory)
    size, labels = len(text.dictionary), read_labels(data)
    for i, (model, path) in enumerate(zip(members, paths, strict=True)):
        if labels is not None:
            name_labels(model, labels)
        multilingual = model.extras.get("fairseq", {}).get("task") == "multilingual_denoising"
        try:
            if multilingual and size > model.config.vocab_size:  # languages are new
                members[i] = model = fit_dictionary(model, size)
            text = text.fit(model.config.vocab_size, exact=True)
        except ValueError as error:
            raise CheckpointError(f"{path} and the dictionary in {data}: {error}") from None
    if data == directory:
        _check_dictionaries(members, paths, text)
    return text


def _check_dictionaries(
    members: Sequence[ModelFiles], paths: Sequence[Path], text: TextEncoder
) -> None:
    """Members of an ensemble that come from folders of their own may have dictionaries there."""
    for model, path in zip(members[1:], paths[1:], strict=True):
        if path.parent.samefile(paths[0].parent):
            continue
        try:
            own = TextEncoder.load(path.parent, model.extras.get("langs", []))
        except FileNotFoundError:
            continue
        pairs = zip(text.dictionary.symbols, own.dictionary.symbols, strict=False)
        for i, (one, other) in enumerate(pairs):
            if one != other:
                raise ValueError(
                    f"{paths[0]} and {path} make no ensemble: the id {i} is {one!r} in the first's "
                    f"dictionary and {other!r} in the second's"
                )


def _check_sources(directory: Path, config: BARTConfig, text: TextEncoder) -> None:
    """The tokenizer of sources that have a vocabulary of their own is there, and fits."""
    if not config.source_encoder_layers:
        return
    size = None if text.source is None else len(text.source.dictionary)
    if size is None or size > config.source_vocab_size:
        there = "none is there" if size is None else f"that there has {size} symbols"
        raise ValueError(
            f"{directory} needs a tokenizer of {config.source_vocab_size} symbols for its sources, "
            f"in source_tokenizer, and {there}"
        )


def _check_ensemble(members: Sequence[ModelFiles], paths: Sequence[Path]) -> None:
    """Members of an ensemble may differ in size, but must speak of the same ids."""
    names = ("vocab_size", *(n for n in vars(members[0].config) if n.endswith("_token_id")))
    for model, path in zip(members[1:], paths[1:], strict=True):
        for name in names:
            one, other = getattr(members[0].config, name), getattr(model.config, name)
            if one != other:
                raise ValueError(
                    f"{paths[0]} and {path} make no ensemble: {name} is {one} in the first and "
                    f"{other} in the second"
                )
