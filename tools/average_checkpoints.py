"""Average checkpoints' parameters: `python tools/average_checkpoints.py --inputs A B --output C`.

The options are those of fairseq's `scripts/average_checkpoints.py`. Checkpoints are fairseq's `.pt`
files or folders of this package or of Hugging Face, all of one kind; the output is of that kind.
The mean is taken in float32 and stays so. Everything else (arguments, heads' labels, tokenizer) is
the first one's; its optimizer, which belongs to other parameters now, is left out.
"""

import argparse
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.checkpoint.huggingface import read_model, write_model
from bart_hk.checkpoint.model_files import HeadFiles, ModelFiles
from bart_hk.text import TextEncoder
from bart_hk.torch_format import read_torch, write_torch

# What a checkpoint is loaded from, the optimizer's state apart.
_KEPT = (
    "args",
    "cfg",
    "model",
    "criterion",
    "optimizer_history",
    "task_state",
    "extra_state",
    "bart_hk",
)


def mean(arrays: Sequence[Any]) -> np.ndarray:
    """The mean of arrays of one shape, in float32, or float64 where they are that wide.

    Whole numbers stay whole, by floor division.

    Raises:
        ValueError: the shapes differ.
    """
    first = np.asarray(arrays[0])
    shapes = sorted({np.shape(array) for array in arrays})
    if len(shapes) > 1:
        raise ValueError(f"has the shapes {shapes[0]} and {shapes[1]}")
    if first.dtype.kind in "iub":
        whole = sum(np.asarray(array).astype(np.int64) for array in arrays) // len(arrays)
        return np.asarray(whole).astype(first.dtype)
    total: Any = first.astype(np.float64 if first.dtype == np.float64 else np.float32)
    for array in arrays[1:]:
        total += np.asarray(array).astype(total.dtype, copy=False)
    total /= total.dtype.type(len(arrays))
    return total


def average_states(states: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The mean of every tensor; those that are one in the first state are one in the result.

    Raises:
        ValueError: a state has other tensors than the first, or of other shapes.
    """
    averaged: dict[str, np.ndarray] = {}
    known: dict[Any, np.ndarray] = {}
    for number, state in enumerate(states[1:], start=2):
        if different := sorted(states[0].keys() ^ state.keys()):
            raise ValueError(f"only one of checkpoints 1 and {number} has {different[0]}")
    for name in states[0]:
        # Tied tensors are stored once and have two names.
        where = tuple((s[name].ctypes.data, s[name].shape, s[name].strides) for s in states)
        if where not in known:
            try:
                known[where] = mean([state[name] for state in states])
            except ValueError as error:
                raise ValueError(f"{name} {error}") from None
        averaged[name] = known[where]
    return averaged


def average_files(inputs: Sequence[Path], output: Path) -> None:
    """Average fairseq's checkpoints into another."""
    first = read_torch(inputs[0], only=_KEPT)
    others = [read_torch(path, only=("model",)) for path in inputs[1:]]
    for path, checkpoint in zip(inputs, [first, *others], strict=True):
        if not isinstance(checkpoint.get("model"), Mapping):
            raise ValueError(f"{path} is no checkpoint of fairseq's trainer")
    averaged = average_states([first["model"], *(other["model"] for other in others)])
    extra = {k: v for k, v in (first.get("extra_state") or {}).items() if not k.startswith("ema")}
    content = {**first, "extra_state": extra, "last_optimizer_state": None}
    content["model"] = OrderedDict(averaged)
    temporary = output.with_name(f"{output.name}.saving")
    try:
        write_torch(temporary, content)
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def average_folders(inputs: Sequence[Path], output: Path) -> None:
    """Average models in folders into another."""
    models = [read_model(path) for path in inputs]
    flat = [_flat(model) for model in models]
    first = models[0]
    for path, model in zip(inputs[1:], models[1:], strict=True):
        if model.config.replace(**_rates(first)) != first.config:
            raise ValueError(f"{path} holds a model of another structure than {inputs[0]}")
    averaged = average_states(flat)
    params: dict[str, dict[str, Any]] = {path: {} for path in first.params}
    heads = {
        name: HeadFiles({"dense": {}, "out_proj": {}}, head.labels, head.regression)
        for name, head in first.heads.items()
    }
    for name, array in averaged.items():
        head, module, leaf = name.split(":")
        (heads[head].params if head else params)[module][leaf] = array

    def write_text(folder: Path) -> None:
        try:
            text = TextEncoder.load(inputs[0])
        except FileNotFoundError:
            return  # a model without a tokenizer
        text.save(folder, first.config.max_source_positions)

    write_model(output, first.config, params, heads, first.extras, also=write_text)


def _rates(model: ModelFiles) -> dict[str, float]:
    return {name: rate for name, rate in vars(model.config).items() if isinstance(rate, float)}


def _flat(model: ModelFiles) -> dict[str, np.ndarray]:
    trees = {"": model.params, **{name: head.params for name, head in model.heads.items()}}
    return {
        f"{head}:{path}:{leaf}": np.asarray(array)
        for head, params in trees.items()
        for path, leaves in params.items()
        for leaf, array in leaves.items()
    }


def last_checkpoints(
    folder: Path, count: int, pattern: str, upper_bound: int | None = None
) -> list[Path]:
    """The `count` last checkpoints in a folder, newest first.

    Args:
        pattern: of their names, with the number that orders them as its group.
        upper_bound: the highest number that counts.

    Raises:
        ValueError: there are fewer.
    """
    found = []
    for path in folder.iterdir():
        match = re.fullmatch(pattern, path.name)
        if match and (upper_bound is None or float(match[1]) <= upper_bound):
            found.append((float(match[1]), path))
    if len(found) < count:
        raise ValueError(f"{folder} holds {len(found)} such checkpoints, fewer than {count}")
    return [path for _, path in sorted(found, reverse=True)[:count]]


def best_checkpoints(paths: Sequence[Path], count: int) -> list[Path]:
    """The `count` files whose names, such as `checkpoint.best_loss_2.31.pt`, end in the lowest.

    Raises:
        ValueError: a name does not end in a number, or there are fewer.
    """
    scores = {}
    for path in paths:
        match = re.fullmatch(r".*_(-?\d+(\.\d+)?)\.pt", path.name)
        if match is None:
            raise ValueError(f"{path.name} does not end in a score, as checkpoint.best_loss_2.3.pt")
        scores[path] = float(match[1])
    if len(scores) < count:
        raise ValueError(f"there are {len(scores)} such checkpoints, fewer than {count}")
    return sorted(scores, key=scores.__getitem__)[:count]


def main(argv: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--inputs", required=True, nargs="+", type=Path, help="checkpoints, or a folder of them"
    )
    parser.add_argument("--output", required=True, type=Path, help="the averaged checkpoint")
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--num-epoch-checkpoints", type=int, metavar="N", help="the last N checkpoint*.pt"
    )
    group.add_argument(
        "--num-update-checkpoints", type=int, metavar="N", help="the last N checkpoint_*_*.pt"
    )
    group.add_argument(
        "--num-best-checkpoints", type=int, metavar="N", help="the N with the lowest *_NUMBER.pt"
    )
    parser.add_argument(
        "--checkpoint-upper-bound", type=int, metavar="N", help="last epoch or update that counts"
    )
    args = parser.parse_args(None if argv is None else list(argv))
    try:
        inputs = _inputs(args)
        folders = {path.is_dir() for path in inputs}
        if len(folders) > 1:
            raise ValueError("the inputs are files and folders; give checkpoints of one kind")
        print("averaging", *inputs, sep="\n  ")
        (average_folders if folders.pop() else average_files)(inputs, args.output)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"wrote {args.output}")
    return 0


def _inputs(args: argparse.Namespace) -> list[Path]:
    for count, pattern in (
        (args.num_epoch_checkpoints, r"checkpoint(\d+)\.pt"),
        (args.num_update_checkpoints, r"checkpoint_\d+_(\d+)\.pt"),
    ):
        if count is None:
            continue
        if len(args.inputs) != 1:
            raise ValueError("the last checkpoints are those of one folder: --inputs FOLDER")
        return last_checkpoints(args.inputs[0], count, pattern, args.checkpoint_upper_bound)
    if args.num_best_checkpoints is not None:
        return best_checkpoints(args.inputs, args.num_best_checkpoints)
    if args.checkpoint_upper_bound is not None:
        raise ValueError(
            "--checkpoint-upper-bound needs --num-epoch-checkpoints or --num-update-checkpoints"
        )
    return args.inputs


if __name__ == "__main__":
    raise SystemExit(main())
