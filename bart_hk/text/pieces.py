"""Texts cut where words, numbers and punctuation meet, so that ids know which characters they are.

GPT-2's BPE never joins what is cut here, and SentencePiece joins little of it, so the ids of the
pieces are those of the text.
"""

import itertools
import re
from typing import NamedTuple

import numpy as np

from bart_hk.text.encoder import TextEncoder

# GPT-2's: contractions, letters, digits, the rest; what stands between is white space.
_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)(?![^\W\d_])|[^\W\d_]+|\d+|(?:_|[^\w\s])+")


class Pieces(NamedTuple):
    """The ids int32 [N] of a text, and for each the characters [begin, end) of its piece."""

    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray


def encode_pieces(encoder: TextEncoder, texts: list[str]) -> list[Pieces]:
    """The ids of texts, with their places.

    A piece that follows white space is encoded with a space before it, the first without.
    """
    spans = [[match.span() for match in _PIECE.finditer(text)] for text in texts]
    words = [
        (" " if begin and text[begin - 1].isspace() and number else "") + text[begin:end]
        for text, found in zip(texts, spans, strict=True)
        for number, (begin, end) in enumerate(found)
    ]
    unique = list(dict.fromkeys(words))
    known = dict(zip(unique, encoder.encode_batch(unique), strict=True))
    encoded = iter(words)
    results = []
    for found in spans:
        of_text = [known[word] for word in itertools.islice(encoded, len(found))]
        counts = [len(ids) for ids in of_text]
        results.append(
            Pieces(
                np.array([i for ids in of_text for i in ids], np.int32),
                np.repeat([begin for begin, _ in found], counts).astype(np.int64),
                np.repeat([end for _, end in found], counts).astype(np.int64),
            )
        )
    return results
