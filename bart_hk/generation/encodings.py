"""Sources that were encoded before a search: checked, and cut into batches as they come."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bart_hk.generation.lists import check_bounds
from bart_hk.model import BART, EncoderOutput, Ensemble


def checked_encoding(encoder_out: Any, lengths: Sequence[int], bart: BART | Ensemble) -> Any:
    """`encoder_out` of these rows, without what only training wants of it.

    Raises:
        ValueError: it is of something else: other rows, another model, no encoding at all.
    """
    if isinstance(bart, Ensemble):
        if not isinstance(encoder_out, tuple | list) or len(encoder_out) != len(bart.members):
            raise ValueError(
                f"encoder_out of an ensemble of {len(bart.members)} must be a tuple with what each "
                "member's encode gave"
            )
        pairs = zip(encoder_out, bart.members, strict=True)
        return tuple(checked_encoding(one, lengths, member) for one, member in pairs)
    if not isinstance(encoder_out, EncoderOutput):
        raise ValueError(
            f"encoder_out must be what model.encode gives, not a {type(encoder_out).__name__}"
        )
    kept = EncoderOutput(encoder_out.encoder_out, encoder_out.src_mask)
    rows, width = kept.src_mask.shape
    if rows != len(lengths):
        raise ValueError(f"encoder_out of {rows} rows does not go with {len(lengths)} inputs")
    if kept.encoder_out.shape != (rows, width, bart.config.encoder_embed_dim):
        raise ValueError(
            f"encoder_out has the shape {kept.encoder_out.shape}, not "
            f"{(rows, width, bart.config.encoder_embed_dim)}; encode with the same model"
        )
    for i, (have, length) in enumerate(zip(np.sum(kept.src_mask, axis=1), lengths, strict=True)):
        want = bart.config.attended(length)
        if have != want:
            raise ValueError(
                f"encoder_out has {have} tokens for input {i}, which has {want}; encode the same "
                "rows in the same order"
            )
    return kept


def plan_encoded(
    encoder_out: Any, max_tokens: int, batch_size: int
) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Batches of rows that are padded to one length already, in their order; a power of two, where
    there are not as many as fit."""
    check_bounds(max_tokens, batch_size)
    rows, width = jax.tree.leaves(encoder_out)[0].shape[:2]
    count = max(1, min(batch_size, max_tokens // width, 1 << (rows - 1).bit_length()))
    starts = range(0, rows, count)
    return [(np.arange(first, min(first + count, rows)), (count, width)) for first in starts]
