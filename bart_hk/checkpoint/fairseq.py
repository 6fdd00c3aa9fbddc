"""fairseq's tensor names, in both directions (its files are read elsewhere).

fairseq stores a tied embedding table three times, keeps two version numbers among the tensors,
names its classification heads, and begins a position table with padding id + 1 unused rows.
Source: `models/bart/model.py` and the state of a `BARTModel`.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from bart_hk.checkpoint import tree
from bart_hk.checkpoint.tree import Params
from bart_hk.config import BARTConfig

_OUTPUT = "decoder.output_projection.weight"
_HEAD = re.compile(r"classification_heads\.(.+)\.((?:dense|out_proj)\.(?:weight|bias))")
_NOT_WEIGHTS = re.compile(r"(encoder|decoder)\.(version|embed_positions\._float_tensor)")


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
                state["encoder.embed_tokens.weight"] = tensor
                state["decoder.embed_tokens.weight"] = tensor
            elif path == "output_projection":
                state[_OUTPUT] = tensor
            elif path.endswith("embed_positions"):
                rows = (config.position_offset, config.pad_token_id + 1)
                state[tree.torch_name(path, name)] = _with_unused_rows(tensor, *rows)
            else:
                state[tree.torch_name(path, name)] = tensor
    state.setdefault(_OUTPUT, state["decoder.embed_tokens.weight"])
    for head, head_params in (heads or {}).items():
        for leaf, tensor in tree.head_to_torch(head_params).items():
            state[f"classification_heads.{head}.{leaf}"] = tensor
    return state


def from_fairseq(state: Mapping[str, Any], config: BARTConfig) -> tuple[Params, dict[str, Params]]:
    """The parameters and the classification heads of a fairseq `BARTModel`'s state.

    Linear weights of the result are transposed views of the state's.

    Raises:
        ValueError: a tensor is missing, has the wrong shape, or has no place in this config.
    """
    params: Params = {}
    used = {_OUTPUT, "decoder.embed_tokens.weight"}  # copies where they are tied
    for path, leaves in tree.parameter_shapes(config).items():
        params[path] = {}
        for name, shape in leaves.items():
            stored = {
                "embed_tokens": "encoder.embed_tokens.weight",
                "output_projection": _OUTPUT,
            }.get(path, tree.torch_name(path, name))
            if stored not in state:
                raise ValueError(f"the fairseq state lacks the tensor {stored}")
            tensor = np.asarray(state[stored])
            if path.endswith("embed_positions"):
                rows = (config.pad_token_id + 1, config.position_offset)
                tensor = _with_unused_rows(tensor, *rows)
            array = tree.from_torch(name, tensor)
            if array.shape != shape:
                found = np.shape(state[stored])
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
    heads = {name: tree.head_from_torch(tensors) for name, tensors in leaves_of.items()}
    return params, heads


def _with_unused_rows(table: np.ndarray, have: int, want: int) -> np.ndarray:
    """A position table that begins with `want` unused rows, from one that begins with `have`."""
    if want <= have:
        return table[have - want :]
    return np.pad(table, ((want - have, 0), (0, 0)))
