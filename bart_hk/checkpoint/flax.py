"""transformers' Flax models: `flax_model.msgpack`, under torch's names and back.

Their modules are called as torch's. A linear layer's `kernel` is [in, out], torch's `weight` turned
around; `scale` and `embedding` are torch's `weight` as it is. Encoder and decoder have one table.
Source: transformers 4.57 `modeling_flax_bart.py`, `modeling_flax_mbart.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.checkpoint.files import MakeTensor, Tensors
from bart_hk.checkpoint.msgpack_file import write_arrays
from bart_hk.config import BARTConfig

FLAX_WEIGHTS = "flax_model.msgpack"

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
# Copies of the one table, in torch's names.
_TABLES = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
# What modeling_flax_utils.ACT2FN knows.
_ACTIVATIONS = (
    *("gelu", "relu", "silu", "swish", "gelu_new", "quick_gelu", "gelu_pytorch_tanh", "tanh"),
)


class FlaxNames:
    """A file of Flax's parameters (names joined by dots), as one of torch's tensors."""

    def __init__(self, file: Tensors):
        self.path = file.path
        self._file = file
        self._stored = {_torch_name(name): name for name in file.names()}

    def names(self) -> list[str]:
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._file.shape(self._stored[name])
        return shape[::-1] if _is_kernel(self._stored[name]) else shape

    def read(self, name: str) -> np.ndarray:
        array = self._file.read(self._stored[name])
        return array.T if _is_kernel(self._stored[name]) else array


def has_flax_names(names: list[str]) -> bool:
    """Whether a file's tensors are named as Flax's, which may be in .safetensors as well."""
    return any(map(_is_kernel, names))


def _is_kernel(name: str) -> bool:
    return name.endswith(".kernel")


def _torch_name(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    return f"{module}.{_LEAVES[leaf]}" if module and leaf in _LEAVES else name


def flax_lacks(config: BARTConfig, plbart: bool = False) -> str | None:
    """What transformers' Flax models have not, besides what its torch models have not; or None."""
    if plbart:
        return "no Flax PLBart"
    if len(config.sides) < 2:
        return f"no Flax BART with flavour={config.flavour}"
    if config.source_encoder_layers:
        return f"no Flax BART with source_encoder_layers={config.source_encoder_layers}"
    if config.n_latent_tokens:
        return f"no Flax BART with n_latent_tokens={config.n_latent_tokens}"
    if config.activation_fn not in _ACTIVATIONS:
        return f"no Flax BART with activation_fn={config.activation_fn}"
    return None


def flax_tensors(config: BARTConfig, tensors: Mapping[str, MakeTensor]) -> dict[str, MakeTensor]:
    """Tensors under torch's names as Flax's parameters, names joined by slashes.

    Raises:
        ValueError: source and target tables differ, of which Flax's models have one.
    """
    if not config.share_all_embeddings:
        one, other = (tensors[name]() for name in _TABLES)
        if one.tobytes() != other.tobytes():
            raise ValueError(
                "transformers' Flax models have one embedding table for source and target; those "
                "of this model differ: write it with --to hf"
            )
    renamed: dict[str, MakeTensor] = {}
    for name, make in tensors.items():
        if name in _TABLES:
            continue
        *modules, leaf = name.split(".")
        if leaf == "weight":
            is_table = modules[-1] == "shared" or modules[-1].startswith("embed_")
            leaf = "scale" if "norm" in modules[-1] else "embedding" if is_table else "kernel"
        renamed["/".join([*modules, leaf])] = _turned(make) if leaf == "kernel" else make
    return renamed


def write_flax(path: Path, tensors: Mapping[str, MakeTensor]) -> None:
    """Write what `flax_tensors` gives, or a part of it, as Flax's tree."""
    tree: dict[str, Any] = {}
    for name, make in tensors.items():
        *modules, leaf = name.split("/")
        inner = tree
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[leaf] = make
    write_arrays(path, tree)


def _turned(make: MakeTensor) -> MakeTensor:
    return lambda: make().T
