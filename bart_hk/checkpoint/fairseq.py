"""fairseq's tensor names, in both directions, and those of its older and shorter-lived versions.

fairseq stores a tied embedding table three times, keeps two version numbers among the tensors,
names its classification heads, and begins a position table with padding id + 1 unused rows.
Source: `models/bart/model.py` and the state of a `BARTModel`; for `upgrade` what every module's
`upgrade_state_dict_named` does while fairseq loads.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bart_hk.checkpoint import tree
from bart_hk.checkpoint.files import DTYPE_CODES
from bart_hk.checkpoint.tree import Params
from bart_hk.config import BARTConfig

_OUTPUT = "decoder.output_projection.weight"
_TABLES = {side: f"{side}.embed_tokens.weight" for side in ("encoder", "decoder")}
_HEAD = re.compile(r"classification_heads\.(.+)\.((?:dense|out_proj)\.(?:weight|bias))")

# Names that are not weights, and the copies of an encoder layer's weights which fairseq of 2022
# kept for PyTorch's fast path: filled at loading, never trained.
_NOT_WEIGHTS = re.compile(
    r"(encoder|decoder)\.(version|embed_positions\._float_tensor)"
    r"|encoder\.layers\.\d+\.(in_proj|out_proj|fc1|fc2)_(weight|bias)"
)
_FUSED = re.compile(r"(.+)\.in_proj_(weight|bias)")  # of 2019: q, k and v below each other
_LAYER_NORM = re.compile(r"((encoder|decoder)\.layers\.\d+)\.layer_norms\.(\d)\.(weight|bias)")
_LAYER_NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}
_SPECTRAL = ".out_proj.weight_orig"


def upgrade(state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` under the names that a fairseq `BARTModel` has today; its arrays are not copied.

    What fairseq's own upgrade drops from a pre-norm model of an old or missing `version`, its last
    layer norms, stays: where they are stored, they are part of the model.

    Raises:
        ValueError: fused projections that are not three of the same size.
    """
    upgraded: dict[str, Any] = {}
    for name, tensor in state.items():
        if _NOT_WEIGHTS.fullmatch(name):
            continue
        if fused := _FUSED.fullmatch(name):
            rows, rest = divmod(np.shape(tensor)[0] if np.ndim(tensor) else 1, 3)
            if rest:
                raise ValueError(f"{name} of shape {np.shape(tensor)} does not hold q, k and v")
            for i, projection in enumerate(("q_proj", "k_proj", "v_proj")):
                part = tensor[i * rows : (i + 1) * rows]
                upgraded[f"{fused[1]}.{projection}.{fused[2]}"] = part
        elif norm := _LAYER_NORM.fullmatch(name):
            names = dict(enumerate(_LAYER_NORMS[norm[2]]))
            upgraded[f"{norm[1]}.{names.get(int(norm[3]), norm[3])}.{norm[4]}"] = tensor
        elif name == "decoder.embed_out":
            upgraded[_OUTPUT] = tensor
        elif name.endswith(_SPECTRAL):
            prefix = name.removesuffix("_orig")
            u, v = state.get(f"{prefix}_u"), state.get(f"{prefix}_v")
            if u is None or v is None:
                raise ValueError(f"{name} stands without {prefix}_u and {prefix}_v")
            # Spectral norm, in evaluation: the matrix by its largest singular value.
            matrix, left, right = (np.asarray(x, np.float32) for x in (tensor, u, v))
            upgraded[prefix] = (matrix / (left @ (matrix @ right))).astype(tensor.dtype)
        elif not name.endswith((".out_proj.weight_u", ".out_proj.weight_v")):
            upgraded[name] = tensor
    return upgraded


def keep_layers(state: Mapping[str, Any], side: str, kept: Sequence[int]) -> dict[str, Any]:
    """`state` with only these layers of a side, numbered anew (fairseq's `layers_to_keep`)."""
    prefix, numbers = f"{side}.layers.", {str(old): new for new, old in enumerate(sorted(kept))}
    pruned = {}
    for name, tensor in state.items():
        if name.startswith(prefix):
            old, _, rest = name.removeprefix(prefix).partition(".")
            if old not in numbers:
                continue
            name = f"{prefix}{numbers[old]}.{rest}"
        pruned[name] = tensor
    return pruned


def to_fairseq(
    params: Mapping[str, Mapping[str, Any]],
    config: BARTConfig,
    heads: Mapping[str, Params] | None = None,
) -> dict[str, np.ndarray]:
    """The state that a fairseq `BARTModel` of this config loads, linear weights as [out, in].

    Args:
        params: as `tree.parameter_shapes(config)`.
        heads: {name: {"dense": {"w", "b"}, "out_proj": {"w", "b"}}}.

    Raises:
        ValueError: the parameters do not fit the config, or it has a bias on the logits.
    """
    tree.check_parameters(params, config)
    if config.final_logits_bias:
        raise ValueError("fairseq has no bias on the logits (final_logits_bias=True)")
    # A layer that normalises first has a final layer norm from version 3 (2 in the encoder) on.
    state = {f"{side}.version": np.asarray([3.0], np.float32) for side in ("encoder", "decoder")}
    for path, leaves in params.items():
        for name, array in leaves.items():
            tensor = tree.to_torch(name, array)
            if path == "embed_tokens":
                state |= dict.fromkeys(_TABLES.values(), tensor)
            elif path == "output_projection":
                state[_OUTPUT] = tensor
            elif path.endswith("embed_positions"):
                rows = (config.position_offset, config.pad_token_id + 1)
                state[tree.torch_name(path, name)] = _with_unused_rows(tensor, *rows)
            else:
                state[tree.torch_name(path, name)] = tensor
    state.setdefault(_OUTPUT, state[_TABLES["decoder"]])
    for head, head_params in (heads or {}).items():
        for leaf, tensor in tree.head_to_torch(head_params).items():
            state[f"classification_heads.{head}.{leaf}"] = tensor
    return state


def from_fairseq(state: Mapping[str, Any], config: BARTConfig) -> tuple[Params, dict[str, Params]]:
    """The parameters and the classification heads of a fairseq `BARTModel`'s state (`upgrade`).

    Linear weights of the result are transposed views of the state's. Of a tied table's copies the
    one counts that fairseq, which loads them one after the other, is left with.

    Raises:
        ValueError: a tensor is missing, has the wrong shape or no floats, or has no place in this
            config.
    """
    params: Params = {}
    tied = {
        "embed_tokens": (_OUTPUT, _TABLES["decoder"], _TABLES["encoder"]),
        "decoder/embed_tokens": (_OUTPUT, _TABLES["decoder"]),
    }
    if not config.share_decoder_input_output_embed:
        tied = {}
    used = {name for names in tied.values() for name in names}
    for path, leaves in tree.parameter_shapes(config).items():
        params[path] = {}
        for name, shape in leaves.items():
            copies = (_OUTPUT,) if path == "output_projection" else tied.get(path)
            names = copies or (tree.torch_name(path, name),)
            stored = next((n for n in names if n in state), names[-1])
            if stored not in state:
                raise ValueError(f"the fairseq state lacks the tensor {stored}")
            tensor = np.asarray(state[stored])
            found = tensor.shape
            if path.endswith("embed_positions"):
                rows = (config.pad_token_id + 1, config.position_offset)
                tensor = _with_unused_rows(tensor, *rows)
            array = tree.from_torch(name, tensor)
            if array.shape != shape:
                raise ValueError(
                    f"{stored} has shape {found}; in this config it gives {path}/{name} {shape}"
                )
            params[path][name] = array
            used.add(stored)
    leaves_of: dict[str, dict[str, np.ndarray]] = {}
    for match in filter(None, map(_HEAD.fullmatch, state)):
        used.add(match[0])
        leaves_of.setdefault(match[1], {})[match[2]] = np.asarray(state[match[0]])
    unused = sorted(n for n in state if n not in used and not _NOT_WEIGHTS.fullmatch(n))
    if unused:
        raise ValueError(f"the fairseq state holds {unused[0]}, for which this config has no place")
    for name in sorted(used & state.keys()):
        if (dtype := np.asarray(state[name]).dtype) not in DTYPE_CODES:
            raise ValueError(f"{name} has dtype {dtype}; a model's tensors are floats")
    return params, {name: _head(name, tensors, config) for name, tensors in leaves_of.items()}


def _head(name: str, tensors: Mapping[str, np.ndarray], config: BARTConfig) -> Params:
    """A head of any sizes: those that its tensors have among themselves."""

    def rows(leaf: str) -> int:
        return tensors[leaf].shape[0] if leaf in tensors and tensors[leaf].ndim else 0

    inner, classes = rows("dense.weight"), rows("out_proj.weight")
    shapes = {
        "dense.weight": (inner, config.encoder_embed_dim),
        "dense.bias": (inner,),
        "out_proj.weight": (classes, inner),
        "out_proj.bias": (classes,),
    }
    for leaf, shape in shapes.items():
        if leaf not in tensors:
            raise ValueError(f"the head {name!r} lacks the tensor {leaf}")
        if tensors[leaf].shape != shape:
            raise ValueError(
                f"{leaf} of the head {name!r} has shape {tensors[leaf].shape}, not {shape}"
            )
    return tree.head_from_torch(tensors)


def _with_unused_rows(table: np.ndarray, have: int, want: int) -> np.ndarray:
    """A position table that begins with `want` unused rows, from one that begins with `have`."""
    if want <= have:
        return table[have - want :]
    return np.pad(table, ((want - have, 0), (0, 0)))
