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


class _Found(NamedTuple):
    """Where a model is: a folder, or a file that is all of it, and in the folder fairseq's file."""

    path: Path
    checkpoint: Path | None = None

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def __str__(self) -> str:
        return str(self.checkpoint or self.path)


class Opened(NamedTuple):
    """The files of a model: of one, or of the members of an ensemble, which share a tokenizer."""

    members: list[ModelFiles]
    text: TextEncoder


def open_model(
    name_or_path: str | os.PathLike,
    checkpoint_file: str = CHECKPOINT,
    data_name_or_path: str | os.PathLike = ".",
    *,
    bpe_files: Sequence[str | os.PathLike] = (),
    max_positions: int | None = None,
    new_symbols: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    place: Place | None = None,
    **where: Any,
) -> Opened:
    """Finds, reads and checks a model and its tokenizer; see `bart_hk.load` for the arguments.

    Args:
        bpe_files: as `TextEncoder.load`.
        overrides: fields of `BARTConfig`.
        place: what becomes of each tensor as soon as it is read, if nothing is to be resized; so
            that a model on its way to a device is never in memory twice.
        **where: `revision`, `cache_dir`, `force_reload`, `local_files_only` of `zoo.locate`.
    """
    if isinstance(new_symbols, str):
        raise TypeError(f"new_symbols is a list of names, such as [{new_symbols!r}]")
    if max_positions is not None or new_symbols:
        place = None
    found = _find(name_or_path, checkpoint_file, where)
    data = found[0].folder
    if os.fspath(data_name_or_path) != ".":
        data = _data_folder(data, data_name_or_path, where)
    members = [_read(one, overrides or {}, place) for one in found]
    text = _tokenizer(found, members, data, bpe_files)
    if place is not None:
        for one, model in zip(found, members, strict=True):
            if one.checkpoint is not None:
                model.params = place_leaves(model.params, place)
    for model in members:
        if model.config.unk_token_id is None:  # config.json has no place for it
            model.config = model.config.replace(unk_token_id=text.dictionary.unk_index)
    _check_ensemble(members, found)
    for model in members:
        if max_positions is not None:
            model.params, model.config = resize.extend_positions(
                model.params, model.config, max_positions
            )
            model.extras.pop("max_positions", None)  # what it was fine-tuned to read
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
) -> list[_Found]:
    """The model, or the members of an ensemble: checkpoints of one folder, or whole paths."""
    name = os.fspath(name_or_path)
    several = [Path(part) for part in name.split(os.pathsep)]
    if len(several) > 1 and "://" not in name and several[0].exists() and not Path(name).exists():
        if missing := [part for part in several if not part.exists()]:
            raise FileNotFoundError(
                f"{missing[0]} of the ensemble {name} is not there; give each model's whole path"
            )
        return [one for part in several for one in _find(part, checkpoint_file, where)]
    path = zoo.locate(name_or_path, **where)
    ours = (path if path.is_dir() else path.parent) / CONFIG
    if path.is_file():
        if path.suffix == Path(PER_HEAD_WEIGHTS).suffix:
            return [_Found(path)]
        if path.suffix == Path(FLAX_WEIGHTS).suffix:
            return [_Found(path.parent)]
        if path.suffix != ".pt" and ours.is_file():  # its model.safetensors or pytorch_model.bin
            return [_Found(path.parent)]
        return [_Found(path.parent, path)]
    if checkpoint_file == CHECKPOINT and ours.is_file():
        return [_Found(path)]
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
    return [_Found(path, checkpoint) for checkpoint in checkpoint_paths(path, checkpoint_file)]


def _data_folder(directory: Path, name: str | os.PathLike, where: Mapping[str, Any]) -> Path:
    """Where the tokenizer's files are; as in fairseq relative to the model if it begins with '.'"""
    if os.fspath(name).startswith("."):
        return directory / name
    return zoo.locate(name, **{key: value for key, value in where.items() if key != "revision"})


def _read(one: _Found, overrides: Mapping[str, Any], place: Place | None) -> ModelFiles:
    if one.checkpoint is not None:
        return read_fairseq(one.checkpoint, overrides=overrides)
    model = read_model(one.path, place=place)
    config = model.config.replace(**overrides)
    if parameter_shapes(config) != parameter_shapes(model.config):
        shapes = parameter_shapes(model.config)
        changed = [
            name
            for name, value in overrides.items()
            if parameter_shapes(model.config.replace(**{name: value})) != shapes
        ]
        values = ", ".join(f"{name}={getattr(model.config, name)}" for name in changed)
        raise ValueError(f"the model in {one} has {values}; loading cannot change that")
    model.config = config
    return model


def _tokenizer(
    found: Sequence[_Found],
    members: list[ModelFiles],
    data: Path,
    bpe_files: Sequence[str | os.PathLike],
) -> TextEncoder:
    """The first member's tokenizer, which fits all of them; fairseq's labels get their names."""
    text = _own_tokenizer(found[0], members[0], data, bpe_files)
    if found[0].checkpoint is None:
        text = text.fit(members[0].config.vocab_size)
        _check_sources(found[0].path, members[0].config, text)
    size = len(text.dictionary)
    for i, (model, one) in enumerate(zip(members, found, strict=True)):
        if one.checkpoint is None:
            continue
        if (labels := read_labels(data)) is not None:
            name_labels(model, labels)
        multilingual = model.extras.get("fairseq", {}).get("task") == "multilingual_denoising"
        try:
            if multilingual and size > model.config.vocab_size:  # languages are new
                members[i] = model = fit_dictionary(model, size)
            text = text.fit(model.config.vocab_size, exact=True)
        except ValueError as error:
            raise CheckpointError(f"{one} and the dictionary in {data}: {error}") from None
    if data == found[0].folder:
        _check_dictionaries(found, members, text)
    return text


def _own_tokenizer(
    one: _Found, model: ModelFiles, data: Path, bpe_files: Sequence[str | os.PathLike] = ()
) -> TextEncoder:
    if one.checkpoint is None:
        return TextEncoder.load(data, bpe_files=bpe_files)
    return TextEncoder.load(data, model.extras.get("langs", []), one.folder, bpe_files)


def _check_dictionaries(
    found: Sequence[_Found], members: Sequence[ModelFiles], text: TextEncoder
) -> None:
    """Members of an ensemble that come from folders of their own may have dictionaries there."""
    for one, model in zip(found[1:], members[1:], strict=True):
        if one.folder.samefile(found[0].folder):
            continue
        try:
            own = _own_tokenizer(one, model, one.folder)
        except FileNotFoundError:
            continue
        pairs = zip(text.dictionary.symbols, own.dictionary.symbols, strict=False)
        for i, (here, there) in enumerate(pairs):
            if here != there:
                raise ValueError(
                    f"{found[0]} and {one} make no ensemble: the id {i} is {here!r} in the first's "
                    f"dictionary and {there!r} in the second's"
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


def _check_ensemble(members: Sequence[ModelFiles], found: Sequence[_Found]) -> None:
    """Members of an ensemble may differ in size, but must speak of the same ids."""
    names = ("vocab_size", *(n for n in vars(members[0].config) if n.endswith("_token_id")))
    for model, one in zip(members[1:], found[1:], strict=True):
        for name in names:
            here, there = getattr(members[0].config, name), getattr(model.config, name)
            if here != there:
                raise ValueError(
                    f"{found[0]} and {one} make no ensemble: {name} is {here} in the first and "
                    f"{there} in the second"
                )
