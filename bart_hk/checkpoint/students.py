"""Smaller models that begin with some of a larger one's layers.

Source: Shleifer and Rush 2020, "Pre-trained Summarization Distillation", which made distilbart so.
"""

import re
from collections.abc import Sequence

from bart_hk.checkpoint.tree import Params
from bart_hk.config import BARTConfig

# Of twelve layers, as distilbart's authors chose them; elsewhere they are evenly spread.
_OF_TWELVE = {
    1: (0,),
    2: (0, 6),
    3: (0, 6, 11),
    4: (0, 4, 8, 11),
    6: (0, 2, 4, 7, 9, 11),
    9: (0, 1, 2, 4, 5, 7, 9, 10, 11),
}


def layers_to_copy(there: int, wanted: int) -> tuple[int, ...]:
    """The numbers of the layers that are kept, the first always among them.

    Raises:
        ValueError: there are not so many, or none are wanted.
    """
    if not 1 <= wanted <= there:
        raise ValueError(f"{wanted} layers cannot be taken from {there}; from 1 to {there} can")
    if there == 12 and wanted in _OF_TWELVE:
        return _OF_TWELVE[wanted]
    if wanted == 1:
        return (0,)
    return tuple((2 * i * (there - 1) + wanted - 1) // (2 * (wanted - 1)) for i in range(wanted))


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
        ValueError: the teacher has fewer.
    """
    for side, wanted in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        if wanted is None:
            continue
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
