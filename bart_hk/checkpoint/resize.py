"""Longer position tables and larger or smaller vocabularies.

Every function takes parameters and their config and returns both anew; what does not change is not
copied.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bart_hk.checkpoint.tree import Params
from bart_hk.config import BARTConfig

_SIDES = (("encoder", "max_source_positions"), ("decoder", "max_target_positions"))
# The parameters with a row, a column or an element for every symbol, and its axis.
_OF_SYMBOLS = {
    "embed_tokens": ("embeddings", 0),
    "encoder/embed_tokens": ("embeddings", 0),
    "decoder/embed_tokens": ("embeddings", 0),
    "output_projection": ("w", 1),
    "final_logits_bias": ("b", 0),
}


def extend_positions(
    params: Mapping[str, Mapping[str, Any]], config: BARTConfig, max_positions: int
) -> tuple[Params, BARTConfig]:
    """A model for sources and targets of up to `max_positions` tokens.

    Position i of a table that had N takes the vector of position i mod N: the trained vectors again
    and again, as the LED was made of BART (Beltagy et al. 2020, section 5), which is a beginning
    for training on longer texts. Texts of up to N tokens give what they gave before.

    Raises:
        ValueError: a table is longer than that already.
    """
    resized, changes = _copy(params), {}
    for side, field in _SIDES:
        have = getattr(config, field)
        if max_positions < have:
            raise ValueError(f"{field} is {have} and can only grow, not become {max_positions}")
        changes[field] = max_positions
        offset = config.position_offset
        # Sines and cosines, which have no table, go on by themselves.
        for path in {f"{side}/embed_positions", f"source_{side}/embed_positions"} & params.keys():
            table = np.asarray(params[path]["embeddings"])
            again = table[offset + np.arange(max_positions - have) % have]
            resized[path] = {"embeddings": np.concatenate([table, again]) if len(again) else table}
    return resized, config.replace(**changes)


def insert_symbols(
    params: Mapping[str, Mapping[str, Any]],
    config: BARTConfig,
    count: int,
    *,
    before: int | None = None,
    seed: int = 1,
) -> tuple[Params, BARTConfig]:
    """A model with `count` more symbols, whose vectors are drawn from N(0, 1 / D).

    The new vectors are the same in every table and in the output projection, as if all had been one
    matrix. Source of the distribution: fairseq `models/bart/model.py`, where languages are added.

    Args:
        before: the id that the first new symbol gets, such as that of `<mask>`, which moves up with
            all after it; None appends them. Special ids of the config move along.
        seed: of the new vectors; they depend on it and on their number alone.

    Raises:
        ValueError: `count` is negative or `before` is no id.
    """
    if before is None:
        before = config.vocab_size
    if count < 0 or not 0 <= before <= config.vocab_size:
        raise ValueError(
            f"cannot insert {count} symbols before id {before} of {config.vocab_size} symbols"
        )
    width = config.encoder_embed_dim
    rng = np.random.default_rng(seed)
    drawn = rng.standard_normal((count, width), np.float32) * np.float32(width**-0.5)
    resized = _copy(params)
    for path, (name, axis) in _OF_SYMBOLS.items():
        if path in params:
            table = np.asarray(params[path][name])
            new = np.zeros(count, table.dtype) if table.ndim == 1 else drawn.astype(table.dtype)
            parts = np.split(table, [before], axis)
            resized[path] = {
                name: np.concatenate([parts[0], new.T if axis else new, parts[1]], axis)
            }
    moved = {
        field: index + count
        for field, index in _token_ids(config).items()
        if index is not None and index >= before
    }
    return resized, config.replace(vocab_size=config.vocab_size + count, **moved)


def drop_last_symbol(
    params: Mapping[str, Mapping[str, Any]], config: BARTConfig
) -> tuple[Params, BARTConfig]:
    """A model without its last symbol: `<mask>`, which nothing but denoising needs.

    This is how fairseq fine-tunes a bart.large of 50265 symbols to translate with 50264.

    Raises:
        ValueError: the last symbol is one of the special ids of the config.
    """
    last = config.vocab_size - 1
    for field, index in _token_ids(config).items():
        if index == last:
            raise ValueError(f"the last symbol, {last}, is the {field}: it cannot be dropped")
    resized = _copy(params)
    for path, (name, axis) in _OF_SYMBOLS.items():
        if path in params:
            table = np.asarray(params[path][name])
            resized[path] = {name: table[:, :last] if axis else table[:last]}
    return resized, config.replace(vocab_size=last)


def _token_ids(config: BARTConfig) -> dict[str, int | None]:
    return {name: index for name, index in vars(config).items() if name.endswith("_token_id")}


def _copy(params: Mapping[str, Mapping[str, Any]]) -> Params:
    return {path: dict(leaves) for path, leaves in params.items()}
