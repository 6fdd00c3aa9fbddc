"""The tensors of a Hugging Face directory: one file of weights, or its shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.checkpoint import files
from bart_hk.checkpoint.files import Tensors
from bart_hk.checkpoint.flax import FLAX_WEIGHTS, FlaxNames, has_flax_names, write_flax
from bart_hk.checkpoint.msgpack_file import ArrayFile
from bart_hk.checkpoint.per_head import PER_HEAD_WEIGHTS, PerHeadNames
from bart_hk.errors import CheckpointError, shown
from bart_hk.torch_format import give_back, read_torch

WEIGHTS = "model.safetensors"
TORCH_WEIGHTS = "pytorch_model.bin"  # the name until 2023; read where there is no safetensors
LAYOUTS = (WEIGHTS, TORCH_WEIGHTS, FLAX_WEIGHTS, PER_HEAD_WEIGHTS)  # the first that is there
_ENDINGS = tuple(Path(name).suffix for name in LAYOUTS)


def float_dtype(dtype: Any) -> np.dtype:
    """numpy's dtype for `dtype` ("bfloat16", `jnp.float32`, ...); ValueError unless a model's."""
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found not in files.DTYPE_CODES:
        known = ", ".join(str(d) for d in files.DTYPE_CODES)
        raise ValueError(f"dtype={dtype!r} is none that a model can have: {known}")
    return found


class TorchTensors:
    """A state dict that torch.save wrote; its tensors are views of the mapped file."""

    def __init__(self, path: Path):
        """Raises FileNotFoundError, or CheckpointError for a file that holds no state dict."""
        self.path = path
        try:
            state = read_torch(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path.parent} holds no {path.name}") from None
        if not isinstance(state, dict):
            raise CheckpointError(f"{path} holds {shown(state)}, not named tensors")
        for name, tensor in state.items():
            if not isinstance(name, str) or not isinstance(tensor, np.ndarray):
                raise CheckpointError(
                    f"{path} holds more than named tensors: {shown(name)} is {shown(tensor)}"
                )
        self._state: dict[str, np.ndarray] = state

    def names(self) -> list[str]:
        return list(self._state)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._state[name].shape

    def read(self, name: str) -> np.ndarray:
        return self._state[name]


def _files(directory: Path) -> list[Path]:
    """The files that hold the weights: one, or the shards that an index names."""
    for name in LAYOUTS:
        index = directory / f"{name}.index.json"
        if (directory / name).exists():
            return [directory / name]
        if index.exists():
            places = files.read_json(index).get("weight_map")
            shards = list(places.values()) if isinstance(places, dict) else []
            if not shards or not all(_is_shard(name) for name in shards):
                raise CheckpointError(f"{index} does not say in which files beside it tensors are")
            return [directory / shard for shard in sorted(set(shards))]
    return [directory / WEIGHTS]


def _open(path: Path) -> Tensors:
    """A file's tensors, under torch's names and in its layout, whoever wrote it."""
    match path.suffix:
        case ".bin":
            return TorchTensors(path)
        case ".msgpack":
            return FlaxNames(ArrayFile(path))
        case ".dat":
            return PerHeadNames(ArrayFile(path))
    file = files.TensorFile(path)
    return FlaxNames(file) if has_flax_names(file.names()) else file


def _is_shard(name: Any) -> bool:
    """Whether `name` is that of a file of weights in the directory itself."""
    return isinstance(name, str) and Path(name).name == name and name.endswith(_ENDINGS)


class Weights:
    """Tensors under names without the `model.` that most classes of transformers put before them.

    Nothing is read before it is asked for, and nothing is kept.
    """

    def __init__(self, directory: Path, dtype: Any = None):
        """`directory` may be a file of weights. `dtype` is what `read` gives; None leaves the
        tensors as they are stored."""
        self.directory = directory if directory.is_dir() else directory.parent
        self._dtype = None if dtype is None else float_dtype(dtype)
        self._where: dict[str, tuple[Tensors, str]] = {}
        for path in _files(directory) if directory.is_dir() else [directory]:
            self.add(_open(path))

    def add(self, file: Tensors) -> None:
        """Take in the tensors of one more file."""
        self._where |= {name.removeprefix("model."): (file, name) for name in file.names()}

    def names(self) -> set[str]:
        return set(self._where)

    def _find(self, name: str) -> tuple[Tensors, str]:
        if name not in self._where:
            raise ValueError(f"the weights in {self.directory} lack the tensor {name}")
        return self._where[name]

    def shape(self, name: str) -> tuple[int, ...]:
        file, stored = self._find(name)
        return file.shape(stored)

    def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor `name`; ValueError when it is missing or has another shape."""
        file, stored = self._find(name)
        found = file.shape(stored)
        if found != shape:
            raise ValueError(
                f"{file.path}: {stored} has shape {found}; the config asks for {shape}"
            )
        array = file.read(stored)
        if array.dtype not in files.DTYPE_CODES:
            raise ValueError(
                f"{file.path}: {stored} has dtype {array.dtype}; a model's tensors are floats"
            )
        if self._dtype is None or array.dtype == self._dtype:
            return array
        converted = array.astype(self._dtype)
        give_back(array)
        return converted


def write_weights(
    directory: Path,
    tensors: Mapping[str, files.MakeTensor],
    max_shard_size: int | None = None,
    layout: str = WEIGHTS,
) -> None:
    """Writes `model.safetensors`; or, where that were larger, shards and their index.

    Args:
        max_shard_size: bytes of tensors in a file, unless a single one has more.
        layout: "model.safetensors", or "flax_model.msgpack" for `flax_tensors`.
    """
    shards: list[dict[str, files.MakeTensor]] = []
    total = filled = 0
    for name, make in tensors.items():
        size = make().nbytes
        if not shards or (max_shard_size is not None and filled + size > max_shard_size):
            shards.append({})
            filled = 0
        shards[-1][name] = make
        filled, total = filled + size, total + size
    write = {WEIGHTS: files.write_tensors, FLAX_WEIGHTS: write_flax}[layout]
    if len(shards) == 1:
        write(directory / layout, shards[0])
        return
    stem, ending = layout.split(".")
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"{stem}-{number:05d}-of-{len(shards):05d}.{ending}"
        write(directory / name, shard)
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    files.write_json(directory / f"{layout}.index.json", index)
