"""The tensors of a Hugging Face directory: one `model.safetensors`, or its shards."""

from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.checkpoint import files

WEIGHTS = "model.safetensors"


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


class Weights:
    """Tensors under names without the `model.` that most classes of transformers put before them.

    Nothing is read before it is asked for, and nothing is kept.
    """

    def __init__(self, directory: Path, dtype: Any = None):
        """`dtype` is what `read` gives; None leaves the tensors as they are stored."""
        self.directory = directory
        self._dtype = None if dtype is None else float_dtype(dtype)
        self._where: dict[str, tuple[files.TensorFile, str]] = {}
        index = directory / f"{WEIGHTS}.index.json"
        shards = [WEIGHTS]
        if not (directory / WEIGHTS).exists():
            if index.exists():
                shards = sorted(set(files.read_json(index).get("weight_map", {}).values()))
            elif (directory / "pytorch_model.bin").exists():
                raise FileNotFoundError(
                    f"{directory} holds pytorch_model.bin but no {WEIGHTS}: convert it with "
                    "transformers (from_pretrained, then save_pretrained)"
                )
        for shard in shards:
            self.add(files.TensorFile(directory / shard))

    def add(self, file: files.TensorFile) -> None:
        """Take in the tensors of one more file."""
        self._where |= {name.removeprefix("model."): (file, name) for name in file.names()}

    def names(self) -> set[str]:
        return set(self._where)

    def _find(self, name: str) -> tuple[files.TensorFile, str]:
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
        return array if self._dtype is None else array.astype(self._dtype, copy=False)
