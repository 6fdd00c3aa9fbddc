"""The layout of the JAX port of bart-base (ayaka14732/bart-base-jax), with heads as an axis.

`params.dat` is a tree in msgpack, written by Flax: `encoder_layers` and `decoder_layers` are lists;
`q_proj.kernel` is [D, H, K] and `ff.kernel`, the output projection of an attention, [H, K, D]. The
port's documentation has [H, D, K] and [D, D] instead, which are read as well. Position tables may
lack Hugging Face's two unused rows. A model of two languages has `encoder_embedding`,
`decoder_embedding` and `lm_head` [D, V] in place of the one `embedding`.

There is no config in it: the sizes follow from the shapes, and everything else is bart-base's.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from bart_hk.checkpoint.files import MakeTensor, Tensors
from bart_hk.config import ACTIVATION_PARAMETERS, BARTConfig, architecture
from bart_hk.errors import CheckpointError

PER_HEAD_WEIGHTS = "params.dat"

_UNUSED_ROWS = 2  # of Hugging Face's position tables, before the first position
_STRIPPED = 1024  # rows of bart-base's without them

# Names in the file, and torch's.
_RENAMED = (
    (r"embedding\.embedding", "shared.weight"),
    (r"(encoder|decoder)_embedding\.embedding", r"\1.embed_tokens.weight"),
    (r"lm_head", "lm_head.weight"),
    (r"(encoder|decoder)_embed_positions", r"\1.embed_positions.weight"),
    (r"(encoder|decoder)_embed_layer_norm\.(.+)", r"\1.layernorm_embedding.\2"),
    (r"(encoder|decoder)_layers\.(.+)", r"\1.layers.\2"),
    (r"(.+)\.cross_attn(.*)", r"\1.encoder_attn\2"),
    (r"(.+_attn)\.ff\.(.+)", r"\1.out_proj.\2"),
    (r"(.+)\.ff0\.(.+)", r"\1.fc1.\2"),
    (r"(.+)\.ff1\.(.+)", r"\1.fc2.\2"),
    (r"(.+)\.(kernel|scale)", r"\1.weight"),
)


def _torch_name(name: str) -> str:
    for pattern, new in _RENAMED:
        name = re.sub(f"^{pattern}$", new, name)
    return name


class PerHeadNames:
    """A file in that layout, as one of torch's tensors."""

    def __init__(self, file: Tensors):
        """Raises CheckpointError unless an embedding table is in the file."""
        self.path = file.path
        self._file = file
        self._stored = {_torch_name(name): name for name in file.names()}
        tables = {"shared.weight", "decoder.embed_tokens.weight"} & self._stored.keys()
        shape = self._file.shape(self._stored[tables.pop()]) if tables else ()
        if len(shape) != 2:
            raise CheckpointError(
                f"{self.path} is not in the layout of bart-base-jax: it has no table "
                "embedding.embedding or decoder_embedding.embedding"
            )
        self.vocabulary, self.width = shape

    def names(self) -> list[str]:
        return list(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._file.shape(self._stored[name])
        if name.endswith("embed_positions.weight") and shape[:1] == (_STRIPPED,):
            return (_STRIPPED + _UNUSED_ROWS, *shape[1:])
        if name == "lm_head.weight":
            return shape[::-1]
        if not re.search(r"_proj\.|fc[12]\.weight", name):
            return shape
        if name.endswith(".bias"):
            return (int(np.prod(shape)),)
        if len(shape) == 2:
            return shape[::-1]
        if len(shape) != 3:
            return shape
        if name.endswith("out_proj.weight"):
            return (shape[2], shape[0] * shape[1])
        return (
            shape[1] * shape[2] if self._width_first(shape) else shape[0] * shape[2],
            self.width,
        )

    def _width_first(self, shape: tuple[int, ...]) -> bool:
        return shape[0] == self.width

    def read(self, name: str) -> np.ndarray:
        array, shape = self._file.read(self._stored[name]), self.shape(name)
        if name.endswith("embed_positions.weight") and array.shape != shape:
            return np.concatenate([np.zeros_like(array[:_UNUSED_ROWS]), array])
        if array.ndim == 3 and not name.endswith("out_proj.weight"):
            if not self._width_first(array.shape):
                array = array.swapaxes(0, 1)
        if name.endswith(".weight") and re.search(r"_proj|fc[12]|lm_head", name):
            return array.reshape(shape[::-1]).T
        return array.reshape(shape)

    def config(self) -> BARTConfig:
        """What the shapes say; the rest is bart-base's.

        Raises:
            CheckpointError: tensors are missing that say it.
        """
        try:
            by_head = {
                side: self._file.shape(self._stored[f"{side}.layers.0.self_attn.q_proj.bias"])
                for side in ("encoder", "decoder")
            }
            heads = {side: shape[0] for side, shape in by_head.items()}
            widths = {side: self.shape(f"{side}.layers.0.fc1.weight")[0] for side in heads}
            positions = {side: self.shape(f"{side}.embed_positions.weight")[0] for side in heads}
        except LookupError as error:
            raise CheckpointError(
                f"{self.path} is not in the layout of bart-base-jax: it lacks {error}"
            ) from None
        layers = {
            side: len({n.split(".")[2] for n in self._stored if n.startswith(f"{side}.layers.")})
            for side in heads
        }
        widths_of_heads = {shape[-1] for shape in by_head.values() if len(shape) == 2}
        usual = all(heads[s] * shape[-1] == self.width for s, shape in by_head.items())
        tied = "lm_head.weight" not in self._stored
        try:
            return architecture(
                "bart_base",
                vocab_size=self.vocabulary,
                encoder_embed_dim=self.width,
                encoder_ffn_embed_dim=widths["encoder"],
                decoder_ffn_embed_dim=widths["decoder"],
                encoder_layers=layers["encoder"],
                decoder_layers=layers["decoder"],
                encoder_attention_heads=heads["encoder"],
                decoder_attention_heads=heads["decoder"],
                attention_head_dim=None if usual else max(widths_of_heads, default=None),
                max_source_positions=positions["encoder"] - _UNUSED_ROWS,
                max_target_positions=positions["decoder"] - _UNUSED_ROWS,
                share_all_embeddings="shared.weight" in self._stored and tied,
                share_decoder_input_output_embed=tied,
            )
        except ValueError as error:
            raise CheckpointError(f"{self.path}: {error}") from None


def per_head_lacks(config: BARTConfig) -> str | None:
    """A field whose value the layout, or the port's own code, cannot express; or None."""
    plain = architecture("bart_base")
    for name in (
        *("encoder_normalize_before", "decoder_normalize_before", "layernorm_embedding"),
        *("no_scale_embedding", "final_logits_bias", "position_offset"),
        *("encoder_learned_pos", "decoder_learned_pos", "flavour"),
        "source_encoder_layers",
        "n_latent_tokens",
    ):
        if getattr(config, name) != getattr(plain, name):
            return f"{name}={getattr(config, name)}"
    if config.activation_fn in ACTIVATION_PARAMETERS:
        return f"activation_fn={config.activation_fn}"
    return None


def per_head_tree(config: BARTConfig, tensors: Mapping[str, MakeTensor]) -> dict[str, Any]:
    """The tree for `write_arrays` of tensors under torch's names, as the port's code has it."""
    tree: dict[str, Any] = {}
    heads = {"encoder": config.encoder_attention_heads, "decoder": config.decoder_attention_heads}
    if config.share_all_embeddings:
        tree["embedding"] = {"embedding": tensors["model.shared.weight"]}
    else:
        for side in heads:
            table = tensors[f"model.{side}.embed_tokens.weight"]
            tree[f"{side}_embedding"] = {"embedding": table}
        tree["lm_head"] = _made(tensors["lm_head.weight"], turn=True)
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        names = f"model.{side}"
        tree[f"{side}_embed_positions"] = tensors[f"{names}.embed_positions.weight"]
        tree[f"{side}_embed_layer_norm"] = _norm(tensors, f"{names}.layernorm_embedding")
        shape = (heads[side], config.attention_dim(side) // heads[side])
        tree[f"{side}_layers"] = [
            _layer(tensors, f"{names}.layers.{i}", (config.encoder_embed_dim, *shape))
            for i in range(layers)
        ]
    return tree


def _layer(
    tensors: Mapping[str, MakeTensor], names: str, by_head: tuple[int, int, int]
) -> dict[str, Any]:
    """A layer of which `by_head` is [D, H, K]."""
    layer: dict[str, Any] = {}
    for ours, theirs in (("self_attn", "self_attn"), ("encoder_attn", "cross_attn")):
        if f"{names}.{ours}.q_proj.weight" not in tensors:
            continue
        attention: dict[str, Any] = {}
        for part in ("q_proj", "k_proj", "v_proj"):
            attention[part] = {
                "kernel": _made(tensors[f"{names}.{ours}.{part}.weight"], by_head, turn=True),
                "bias": _made(tensors[f"{names}.{ours}.{part}.bias"], by_head[1:]),
            }
        shape = (*by_head[1:], by_head[0])
        attention["ff"] = {
            "kernel": _made(tensors[f"{names}.{ours}.out_proj.weight"], shape, turn=True),
            "bias": tensors[f"{names}.{ours}.out_proj.bias"],
        }
        layer[theirs] = attention
        layer[f"{theirs}_layer_norm"] = _norm(tensors, f"{names}.{ours}_layer_norm")
    for ours, theirs in (("fc1", "ff0"), ("fc2", "ff1")):
        layer[theirs] = {
            "kernel": _made(tensors[f"{names}.{ours}.weight"], turn=True),
            "bias": tensors[f"{names}.{ours}.bias"],
        }
    layer["final_layer_norm"] = _norm(tensors, f"{names}.final_layer_norm")
    return layer


def _norm(tensors: Mapping[str, MakeTensor], name: str) -> dict[str, MakeTensor]:
    return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}


def _made(make: MakeTensor, shape: tuple[int, ...] | None = None, turn: bool = False) -> MakeTensor:
    """What makes the tensor, turned around, in another shape."""

    def changed() -> np.ndarray:
        array = make().T if turn else make()
        return array if shape is None else array.reshape(shape)

    return changed
