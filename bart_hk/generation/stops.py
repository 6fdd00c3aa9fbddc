"""Strings that end a hypothesis, found in its ids while they are chosen.

Shapes: B batch, W beam width, V vocabulary, C candidates, Q nodes.

Where the text of ids is that of their symbols, one after the other, an automaton that reads bytes
can read symbols: how much of a string a text ends with, and a token, tell how much it then ends
with. Source: Aho and Corasick 1975; of what a stop string does, transformers' `stop_strings`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_MOST = 512  # bytes of all strings: a table has a row for each
_START, _NOTHING = 0, 1  # the nodes of a text that has not begun, and of one that has


class Stops(NamedTuple):
    """`stop_strings` as a table."""

    after: Any  # int16 [Q, V], the node after a token, plus Q if the token completes a string

    @classmethod
    def of(
        cls, strings: str | Sequence[str], spellings: Sequence[bytes], is_stripped: bool
    ) -> "Stops":
        """
        Args:
            strings: one or several, none of them empty.
            spellings: of each id what it adds to a text.
            is_stripped: are texts without the white space that they begin with?

        Raises:
            ValueError: a string is none, is empty, or they are too long.
        """
        strings = [strings] if isinstance(strings, str) else list(strings)
        for string in strings:
            if not isinstance(string, str) or not string:
                raise ValueError(
                    f"stop_strings must be texts of at least one character, not {string!r}"
                )
        written = [string.encode() for string in strings]
        if sum(map(len, written)) > _MOST:
            raise ValueError(
                f"stop_strings have {sum(map(len, written))} bytes together, more than {_MOST}; "
                "shorten them, to their beginnings"
            )
        goto, completes = _automaton(written)
        rows = 1 << len(goto).bit_length()  # so that few programs are compiled
        after = np.zeros((rows, len(spellings)), np.int16)
        # Node n of the automaton is n + 1 here.
        reached, found = _read(goto, completes, spellings, np.arange(len(goto)))
        after[_NOTHING : len(goto) + 1] = reached + 1 + rows * found
        first = [one.lstrip() for one in spellings] if is_stripped else spellings
        reached, found = _read(goto, completes, first, np.zeros(1, np.int64))
        begun = np.array([bool(one) for one in first])
        after[_START] = np.where(begun, reached[0] + _NOTHING + rows * found[0], _START)
        return cls(after)


def _automaton(strings: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The node after each byte, int [N, 256], from node 0; and which nodes complete a string."""
    children: list[dict[int, int]] = [{}]
    ends = set()
    for string in strings:
        node = 0
        for byte in string:
            node = children[node].setdefault(byte, len(children))
            if node == len(children):
                children.append({})
        ends.add(node)
    goto = np.zeros((len(children), 256), np.int64)
    completes = np.array([node in ends for node in range(len(children))])
    queue = [(0, 0)]  # nodes, and those of the longest other beginning that their texts end with
    for node, shorter in queue:
        if node:
            goto[node] = goto[shorter]
            completes[node] |= completes[shorter]
        for byte, child in children[node].items():
            queue.append((child, int(goto[shorter, byte]) if node else 0))
            goto[node, byte] = child
    return goto, completes


def _read(
    goto: np.ndarray, completes: np.ndarray, spellings: Sequence[bytes], nodes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """From each of N nodes, int and bool [N, V]: the node after a spelling, and whether it
    completes a string on its way."""
    lengths = np.array([len(one) for one in spellings])
    flat, begins = np.frombuffer(b"".join(spellings), np.uint8), np.cumsum(lengths) - lengths
    reached = np.repeat(nodes[:, None], len(spellings), axis=1)
    found = np.zeros(reached.shape, bool)
    for place in range(lengths.max(initial=0)):
        (longer,) = np.nonzero(lengths > place)
        after = goto[reached[:, longer], flat[begins[longer] + place]]
        reached[:, longer] = after
        found[:, longer] |= completes[after]
    return reached, found


def start(batch: int, beam: int) -> jax.Array:
    """The nodes before the first token: int32 [B, W]."""
    return jnp.full((batch, beam), _START, jnp.int32)


def follow(stops: Stops, nodes: jax.Array, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nodes int32 [B, C] after tokens [B, C], and whether these complete a string."""
    rows = stops.after.shape[0]
    after = jnp.asarray(stops.after)[nodes, tokens].astype(jnp.int32)
    return after % rows, after >= rows
