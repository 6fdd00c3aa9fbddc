"""Command-line flags for every field of `GenerationOptions`, made from the dataclass alone."""

import argparse
import dataclasses
import inspect
import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.presets import PRESETS

_MODEL = "model"
PRESET_NAMES = (*PRESETS, _MODEL)
PRESET_HELP = "fairseq's options for its papers' summaries, or what the model's folder asks for"


def add_option_flags(parser: argparse._ActionsContainer, *, leave_out: tuple[str, ...]) -> None:
    """Adds a flag for each option, with fairseq's spelling: `--max-len-b` for `max_len_b`.

    An option that is not given is not among the parsed arguments, so that presets and the model's
    own defaults show through.
    """
    comments = _comments()
    kinds = get_type_hints(GenerationOptions)
    for field in dataclasses.fields(GenerationOptions):
        if field.name in leave_out:
            continue
        about = [comments.get(field.name, "")]
        if field.default not in (None, ()) and kinds[field.name] is not bool:
            about.append(f"(default {field.default})")
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=field.name,
            default=argparse.SUPPRESS,
            help=" ".join(filter(None, about)).replace("%", "%%"),
            **_arguments(kinds[field.name]),
        )


def preset_options(name: str | None, bart: Any = None) -> dict[str, Any]:
    """The options of `--preset`: a paper's, or "model": what the loaded model's folder asks for.

    Raises:
        ValueError: it asks for nothing, or for something that there is no option for.
    """
    if name != _MODEL:
        return dict(PRESETS[name]) if name else {}
    if bart is None:
        return {}
    if not bart.generation_config:
        raise ValueError("--preset model: its folder says nothing of searches; give the options")
    return bart.generation_config


def _arguments(kind: Any) -> dict[str, Any]:
    """What argparse needs to know to read a value of a field's type."""
    if kind is bool:
        return {"action": "store_true"}
    parts = [part for part in get_args(kind) if part is not type(None)] or [kind]
    for of_tuple in (kind, parts[0]):
        if of_tuple in _TUPLES:
            return _TUPLES[of_tuple]
    choices = [c for part in parts if get_origin(part) is Literal for c in get_args(part)]
    if bool in parts:  # True, False or a word
        words = {"true": True, "false": False, **{choice: choice for choice in choices}}
        return {"type": _Words(words), "metavar": f"{{{','.join(words)}}}"}
    if choices:  # as in fairseq, the flag alone is the first of them
        return {"choices": choices, "nargs": "?", "const": choices[0]}
    return {"type": parts[0], "metavar": "N" if parts[0] is int else "X"}


def _ids(word: str) -> list[int]:
    """`5,6` as [5, 6]."""
    return [int(part) for part in word.split(",")]


def _biased_ids(word: str) -> tuple[list[int], float]:
    """`5,6=-1.5` as ([5, 6], -1.5)."""
    ids, _, added = word.partition("=")
    return _ids(ids), float(added)


def _number(word: str) -> int | float:
    return int(word) if word.isdecimal() else float(word)


# What tuples are read from.
_TUPLES: dict[Any, dict[str, Any]] = {
    tuple[int, ...]: {"type": int, "nargs": "+", "metavar": "ID"},
    tuple[tuple[int, ...], ...]: {"type": _ids, "nargs": "+", "metavar": "ID,ID"},
    tuple[tuple[tuple[int, ...], float], ...]: {
        "type": _biased_ids,
        "nargs": "+",
        "metavar": "ID,ID=X",
    },
    tuple[int, float]: {"type": _number, "nargs": 2, "metavar": ("N", "X")},
}
for _reader, _name in ((_ids, "list of ids"), (_biased_ids, "biased list"), (_number, "number")):
    _reader.__name__ = _name  # what argparse calls it in an error


class _Words:
    """Reads one of a few words."""

    __name__ = "value"  # what argparse calls it in an error

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def __call__(self, word: str) -> Any:
        if word.lower() not in self.values:
            raise argparse.ArgumentTypeError(f"{word!r} is not one of {', '.join(self.values)}")
        return self.values[word.lower()]


def _comments() -> dict[str, str]:
    """What is said of each field in the dataclass's source: behind it, or above it."""
    try:
        lines = inspect.getsource(GenerationOptions).splitlines()
    except OSError:  # there is no source where this is installed
        return {}
    found: dict[str, str] = {}
    above: list[str] = []
    for line in map(str.strip, lines):
        if line.startswith("#"):
            above.append(line.lstrip("# "))
            continue
        if field := re.match(r"(\w+): [^#]*(?:# (.*))?$", line):
            found[field[1]] = field[2] or " ".join(above)
        if line.startswith("def "):
            break
        above = []
    return found
