"""Checkpoints that fairseq saved in shards: `NAME-shard0.pt`, `NAME-shard1.pt`, one per process.

Trained with `--ddp-backend fully_sharded --use-sharded-state`, each process saved its part of the
flattened parameters, and how they become tensors again. Sources: fairseq `checkpoint_utils.py`;
`consolidate_shard_weights` of fairscale's `FullyShardedDataParallel`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.errors import CheckpointError, shown

METADATA = "fsdp_metadata"  # key in the checkpoint
_SHARD = re.compile(r"(.+)-shard(\d+)\.pt")
_PART = re.compile(r"(.+)_part[-_]?(\d+)\.pt")


def shard_paths(path: Path) -> list[Path]:
    """The shards that `path` stands for: those beside it if it is one, or if it is missing and they
    are there; else none.

    Raises:
        CheckpointError: one of them is missing, or it is a part of another kind.
    """
    shard = _SHARD.fullmatch(path.name)
    if shard is None and path.exists():
        if _PART.fullmatch(path.name):
            raise CheckpointError(
                f"{path} is a part of a model that was split over devices (model parallel), as "
                "fairseq does with no BART; give a whole checkpoint"
            )
        return []
    stem = shard[1] if shard else path.name.removesuffix(".pt")
    numbers = {}
    for file in path.parent.glob("*.pt"):
        match = _SHARD.fullmatch(file.name)
        if match and match[1] == stem:
            numbers[int(match[2])] = file
    missing = sorted(set(range(max(numbers, default=-1) + 1)) - numbers.keys())
    if missing:
        raise CheckpointError(
            f"{path.parent} lacks {stem}-shard{missing[0]}.pt, one of the {len(numbers)} or more "
            f"shards of the checkpoint {stem}.pt: put all of them there"
        )
    return [numbers[number] for number in sorted(numbers)]


def join_shards(checkpoints: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The tensors of the whole model, from what its shards hold, in their order.

    Raises:
        ValueError: they are no shards of one model, or not all of them.
    """
    states = [_mapping(checkpoint.get("model"), "model") for checkpoint in checkpoints]
    every = []
    for checkpoint in checkpoints:
        if METADATA not in checkpoint:
            raise ValueError(
                f"it has the name of a shard, but does not say how shards are joined ({METADATA}): "
                "it is of a mixture of experts or of another program; save the whole model, "
                "without --use-sharded-state"
            )
        every.append(_mapping(checkpoint[METADATA], METADATA))
    modules = [_list(about.get("param_metadata"), "param_metadata") for about in every]
    if len({len(each) for each in modules}) > 1:
        raise ValueError("its shards describe models of different structure")
    joined: dict[str, np.ndarray] = {}
    seen: set[str] = set()  # or a small file could ask for any amount of memory
    for number, module in enumerate(modules[0]):
        about = [_mapping(each[number], "param_metadata") for each in modules]
        prefix = _prefix(about[0])
        for flat in _mapping(about[0].get("params"), "params"):
            if f"{prefix}{flat}" in seen:
                raise ValueError(f"it describes {shown(prefix + str(flat))} twice")
            seen.add(f"{prefix}{flat}")
            parts = []
            for state, of_rank in zip(states, about, strict=True):
                padding = _entry(of_rank, flat).get("padding", 0)
                parts.append(_part(state, f"{prefix}{flat}", padding))
                if module.get("no_broadcast_optim_state"):
                    break  # every process has its own, and the first one's is taken
            joined |= _split(np.concatenate(parts), _entry(about[0], flat), prefix, flat)
    for module in modules[0]:
        for pair in _list(module.get("shared_param_info", []), "shared_param_info"):
            source, copy = (str(name) for name in _list(pair, "shared_param_info")[:2])
            if source not in joined:
                raise ValueError(f"its {shown(copy)} is a copy of {shown(source)}, which it lacks")
            joined[copy] = joined[source]
    for name in _list(every[0].get("buffer_names", []), "buffer_names"):
        if isinstance(states[0].get(name), np.ndarray):
            joined[str(name)] = states[0][name]
    return joined


def _prefix(module: Mapping[str, Any]) -> str:
    path = module.get("fsdp_path")
    return f"{path}." if isinstance(path, str) and path else ""


def _part(state: Mapping[str, Any], name: str, padding: Any) -> np.ndarray:
    """What one process has of a flattened parameter: [N], without the padding at its end."""
    part = state.get(name)
    if not isinstance(part, np.ndarray) or type(padding) is not int:
        raise ValueError(f"one of its shards lacks {shown(name)}")
    part = part.reshape(-1)
    if not 0 <= padding <= len(part):
        raise ValueError(f"{shown(name)} has {len(part)} numbers, {padding} of them padding")
    return part[: len(part) - padding]


def _split(
    whole: np.ndarray, about: Mapping[str, Any], prefix: str, flat: str
) -> dict[str, np.ndarray]:
    """The tensors in a flattened parameter, which are views of it."""
    names, shapes = (_list(about.get(key), key) for key in ("names", "shapes"))
    sizes = []
    for shape in shapes:
        shape = _list(shape, "shapes")
        if not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{shown(prefix + flat)} has a tensor of an impossible shape")
        sizes.append(math.prod(shape))
    if len(names) != len(shapes) or sum(sizes) != len(whole):
        raise ValueError(
            f"its shards hold {len(whole)} of the {sum(sizes)} numbers of {shown(prefix + flat)}: "
            "put all shards of the checkpoint there"
        )
    ends = np.cumsum(sizes)
    return {
        f"{prefix}{name}": whole[end - size : end].reshape(tuple(shape))
        for name, shape, size, end in zip(names, shapes, sizes, ends, strict=True)
    }


def _entry(module: Mapping[str, Any], flat: str) -> Mapping[str, Any]:
    return _mapping(_mapping(module.get("params"), "params").get(flat), flat)


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"its {shown(name)} is {shown(value)}, which is no dictionary")
    return value


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"its {shown(name)} is {shown(value)}, which is no list")
    return value
