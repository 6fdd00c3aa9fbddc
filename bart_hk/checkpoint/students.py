"""Smaller models that begin with some of a larger one's layers.

Source: Shleifer and Rush 2020, "Pre-trained Summarization Distillation", which made distilbart so.
"""

import re
from collections.abc import Sequence

from bart_hk.checkpoint.tree import Params
from bart_hk.config import BARTConfig

# Layers of the teacher, layers of the student, and which are copied, as distilbart's authors chose
# them (transformers 4.2, examples/research_projects/seq2seq-distillation/make_student.py: its
# tables for bart.large and, of six layers, for Marian's models). Else: evenly spread.
_COPIED: dict[int, dict[int, tuple[int, ...]]] = {
    12: {
        1: (0,),
        2: (0, 6),
        3: (0, 6, 11),
        4: (0, 4, 8, 11),
        6: (0, 2, 4, 7, 9, 11),
        9: (0, 1, 2, 4, 5, 7, 9, 10, 11),
    },
    6: {1: (0,), 2: (0, 5), 3: (0, 2, 5), 4: (0, 1, 3, 5)},
}
# Which layers a student's are to behave like where that is what they end (there, too).
_SUPERVISING: dict[int, dict[int, tuple[int, ...]]] = {
    12: {1: (11,), 2: (5, 11), 3: (3, 7, 11), 6: (1, 3, 5, 8, 10, 11)},
    6: {1: (5,), 2: (3, 5), 3: (1, 4, 5), 4: (1, 2, 4, 5)},
}


def layers_to_copy(there: int, wanted: int) -> tuple[int, ...]:
    """The numbers of the layers that are kept, the first always among them.

    Raises:
        ValueError: there are not so many, or none are wanted.
    """
    _check(there, wanted)
    if wanted in _COPIED.get(there, {}):
        return _COPIED[there][wanted]
    if wanted == 1:
        return (0,)
    return tuple((2 * i * (there - 1) + wanted - 1) // (2 * (wanted - 1)) for i in range(wanted))


def layers_to_supervise(there: int, wanted: int) -> tuple[int, ...]:
    """The numbers of the layers that a student's layers stand for, the last always among them: each
    does the work of the teacher's up to there (Shleifer and Rush 2020, section 3.2).

    Raises:
        ValueError: there are not so many, or none are wanted.
    """
    _check(there, wanted)
    if wanted in _SUPERVISING.get(there, {}):
        return _SUPERVISING[there][wanted]
    return tuple((i + 1) * there // wanted - 1 for i in range(wanted))


def _check(there: int, wanted: int) -> None:
    if not 1 <= wanted <= there:
        raise ValueError(f"{wanted} layers cannot be taken from {there}; from 1 to {there} can")


def student(
    params: Params,
    config: BARTConfig,
    encoder_layers: int | None = None,
    decoder_layers: int | None = None,
) -> tuple[Params, BARTConfig]:
    """A model of fewer layers; everything else is the teacher's, not copied.

    Args:
        encoder_layers, decoder_layers: how many it has; None keeps all.

    Raises:
        ValueError: the teacher has fewer, or no such stack.
    """
    for side, wanted in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        if wanted is None:
            continue
        config.require(side, f"--{side}-layers {wanted}")
        there = getattr(config, f"{side}_layers")
        try:
            kept = layers_to_copy(there, wanted)
        except ValueError as error:
            raise ValueError(f"--{side}-layers {wanted}: {error}") from None
        params = _renumbered(params, side, kept)
        config = config.replace(**{f"{side}_layers": wanted})
    return params, config


def _renumbered(params: Params, side: str, kept: Sequence[int]) -> Params:
    new: Params = {}
    for path, leaves in params.items():
        match = re.match(rf"{side}/layers_(\d+)/(.+)", path)
        if match is None:
            new[path] = leaves
        elif int(match[1]) in kept:
            new[f"{side}/layers_{kept.index(int(match[1]))}/{match[2]}"] = leaves
    return new
