"""Outputs restricted to a given set of token sequences, on the device and as a plain function.

Shapes: B batch, W beam width, V vocabulary, N nodes, E edges, D nodes with many children.
"""

import itertools
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# A node with few children has them scattered into the mask, one with many has a mask of its own, of
# V / 8 bytes. What is "few" grows while all such masks would take more than this.
_MASK_BYTES = 64 << 20
_FEW = 32
_WORD = 32


class TrieTables(NamedTuple):
    """A trie for the device: arrays whose sizes are powers of two, but for V.

    Node 0 is the root; the last node has no children, and whatever leaves the trie goes there.
    """

    first: jax.Array  # int32 [N + 1], where a node's edges begin; those of the next follow
    token: jax.Array  # int32 [E], rising among the edges of a node
    child: jax.Array  # int32 [E]
    many: jax.Array  # int32 [N], a node's row of `masks`; 0: it has few children
    masks: jax.Array  # uint32 [D, V / 32], a bit for each allowed id; row 0 is empty
    few: jax.Array  # int32 [F], 0 ... F - 1: the edges of a node with few children


class Trie:
    """The outputs that a search may generate.

    Given to `Generator.generate` as `prefix_allowed_tokens_fn`, it runs on the device. It is such a
    function too, for fairseq and for transformers' `generate`.

    Args:
        sequences: the allowed outputs, each its ids after the decoder's start token: with the `<s>`
            that a model is forced to begin with. At the end of each, `</s>` is allowed; it may
            stand there already.
        eos: `</s>`, if the trie is to be called as a function with sequences that lack it.

    Raises:
        ValueError: there are no sequences, one is empty, or one is no list of integers of 0 and
            more.
    """

    def __init__(self, sequences: Sequence[Any], eos: int | None = None) -> None:
        self.eos = eos
        ids, lengths = _flat(sequences)
        self._largest = int(ids.max())
        begins = np.cumsum(lengths) - lengths
        # Level by level: nodes are numbered in the order of (level, parent, token), so node e + 1
        # is where edge e leads, and edges are in the order of (parent, token).
        parents, tokens, lasts, levels = [], [], [], [1]
        going = np.arange(len(lengths))
        node = np.zeros(len(lengths), np.int64)
        nodes, level = 1, 0
        while going.size:
            keys = node * (self._largest + 1) + ids[begins[going] + level]
            edges, edge = np.unique(keys, return_inverse=True)
            parents.append(edges // (self._largest + 1))
            tokens.append(edges % (self._largest + 1))
            node = nodes + edge
            nodes += len(edges)
            levels.append(nodes)
            level += 1
            further = lengths[going] > level
            lasts.append(node[~further])
            going, node = going[further], node[further]
        self._parent = np.concatenate(parents)
        self._token = np.concatenate(tokens).astype(np.int32)
        self._ends = np.zeros(nodes, np.bool_)
        self._ends[np.concatenate(lasts)] = True
        self._first = np.searchsorted(self._parent, np.arange(nodes + 1))
        self._levels = levels  # nodes of at most so many ids
        self._made: dict[tuple[int, int], TrieTables] = {}

    def shortest_outputs(
        self, prefixes: Sequence[tuple[int, ...]], least: int, never: Collection[int], eos: int
    ) -> dict[tuple[int, ...], int]:
        """What a search that must begin with a prefix can end with, at the earliest.

        Args:
            prefixes: ids, without the decoder's start token.
            least: a sequence must have so many ids, `</s>` not counted.
            never: ids that may not come after the prefix.
            eos: `</s>`.

        Returns:
            Of each prefix the number of ids of the shortest such sequence, prefix included; where
            there is none, more than any sequence has.
        """
        nowhere = np.iinfo(np.int64).max
        ends = self._ends.copy()
        closing = np.flatnonzero(self._token == eos)
        ends[closing + 1] = False
        ends[self._parent[closing]] = True
        depth = np.repeat(np.arange(len(self._levels)), np.diff(self._levels, prepend=0))
        shortest = np.where(ends & (depth >= least), depth, nowhere)
        dead = np.isin(self._token, list({eos, *never}))
        for first, last in reversed(list(itertools.pairwise(self._levels))):
            below = np.where(dead[first - 1 : last - 1], nowhere, shortest[first:last])
            np.minimum.at(shortest, self._parent[first - 1 : last - 1], below)
        nodes = {prefix: self._node(prefix) for prefix in set(prefixes)}
        return {p: nowhere if node is None else int(shortest[node]) for p, node in nodes.items()}

    def _node(self, ids: Sequence[int]) -> int | None:
        """Where ids lead to; None where they leave the trie."""
        node = 0
        for token in ids:
            low, high = self._first[node : node + 2]
            edge = low + np.searchsorted(self._token[low:high], token)
            if edge == high or self._token[edge] != token:
                return None
            node = int(edge) + 1
        return node

    def __call__(self, batch_id: int, prefix: Any) -> list[int]:
        """The ids that may follow `prefix`, rising; none where it leaves the trie.

        Args:
            batch_id: not used; the trie is the same for every row.
            prefix: int [n], the ids so far, the decoder's start token (any) first.
        """
        node = self._node(np.asarray(prefix).tolist()[1:])
        if node is None:
            return []
        allowed = self._token[self._first[node] : self._first[node + 1]].tolist()
        if self.eos is not None and self._ends[node] and self.eos not in allowed:
            allowed = sorted([*allowed, self.eos])
        return allowed

    def tables(self, vocabulary: int, eos: int) -> TrieTables:
        """Tables on the device, made once for the same arguments.

        Args:
            vocabulary: V.
            eos: `</s>`, allowed wherever a sequence ends.

        Raises:
            ValueError: an id is outside the vocabulary, or a sequence goes on after `</s>`.
        """
        if (vocabulary, eos) not in self._made:
            self._made[vocabulary, eos] = self._tables(vocabulary, eos)
        return self._made[vocabulary, eos]

    def _tables(self, vocabulary: int, eos: int) -> TrieTables:
        if self._largest >= vocabulary:
            raise ValueError(
                f"the trie holds the id {self._largest}, outside the vocabulary of {vocabulary}"
            )
        children = np.diff(self._first)
        closing = np.flatnonzero(self._token == eos)
        if children[closing + 1].any():
            raise ValueError(
                f"the trie holds sequences that go on after </s> ({eos}); end them there"
            )
        nodes = len(self._ends)
        size = _rounded(nodes + 1)
        open_ends = self._ends.copy()
        open_ends[self._parent[closing]] = False  # </s> is there
        open_ends[closing + 1] = False  # and nothing after it
        (ends,) = np.nonzero(open_ends)
        parent = np.concatenate([self._parent, ends])
        token = np.concatenate([self._token, np.full(len(ends), eos, np.int32)])
        child = np.concatenate([np.arange(1, nodes), np.full(len(ends), size - 1)])
        order = np.lexsort((token, parent))
        parent, token, child = parent[order], token[order], child[order]
        first = np.searchsorted(parent, np.arange(size + 1)).astype(np.int32)

        degree = np.diff(first)
        words = -(-vocabulary // _WORD)
        width = _FEW
        while np.count_nonzero(degree > width) * words * 4 > _MASK_BYTES:
            width *= 2
        (crowded,) = np.nonzero(degree > width)
        many = np.zeros(size, np.int32)
        many[crowded] = np.arange(1, len(crowded) + 1)
        masks = np.zeros((max(8, _rounded(len(crowded) + 1)), words), np.uint32)
        row = many[parent]
        inside = row > 0
        bit = np.left_shift(np.uint32(1), (token[inside] % _WORD).astype(np.uint32))
        np.bitwise_or.at(masks, (row[inside], token[inside] // _WORD), bit)

        room = (0, _rounded(len(token)) - len(token))
        return TrieTables(
            first=jnp.asarray(first),
            token=jnp.asarray(np.pad(token, room)),
            child=jnp.asarray(np.pad(child.astype(np.int32), room, constant_values=size - 1)),
            many=jnp.asarray(many),
            masks=jnp.asarray(masks),
            few=jnp.arange(width, dtype=jnp.int32),
        )


def _flat(sequences: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """All ids in a row, int64, and the length of each sequence."""
    if not len(sequences):
        raise ValueError("the trie has no sequences; give the outputs that are allowed")
    rows = [np.asarray(sequence) for sequence in sequences]
    for i, row in enumerate(rows):
        if row.ndim != 1 or (row.size and not np.issubdtype(row.dtype, np.integer)):
            raise ValueError(
                f"sequence {i} of the trie must be a list of integer ids, not {row.dtype} of shape "
                f"{row.shape}"
            )
        if not row.size:
            raise ValueError(f"sequence {i} of the trie is empty; give it ids, such as </s>")
    ids = np.concatenate(rows).astype(np.int64)
    lengths = np.array([len(row) for row in rows])
    (outside,) = np.nonzero((ids < 0) | (ids >= 1 << 31))
    if outside.size:
        i = int(np.searchsorted(np.cumsum(lengths), outside[0], side="right"))
        raise ValueError(
            f"sequence {i} of the trie holds {ids[outside[0]]}, which is no id; ids are 0 and more"
        )
    return ids, lengths


def _rounded(size: int) -> int:
    return 1 << (size - 1).bit_length()


# The functions below run on the device.


def start(batch: int, beam: int) -> jax.Array:
    """The node of hypotheses without tokens, int32 [B, W]."""
    return jnp.zeros((batch, beam), jnp.int32)


def advance(tables: TrieTables, nodes: jax.Array, tokens: jax.Array) -> jax.Array:
    """The nodes after one more token each: int32 [B, W] from int32 [B, W] nodes and tokens.

    After a token that the trie does not have there, nothing is allowed any more.
    """
    first, token = tables.first, tables.token
    end = first[nodes + 1]

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) // 2
        below = (low < high) & (token[middle] < tokens)
        return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

    steps = int(token.shape[0]).bit_length()  # a node may have all edges
    edge, _ = jax.lax.fori_loop(0, steps, halve, (first[nodes], end), unroll=True)
    there = (edge < end) & (token[edge] == tokens)
    return jnp.where(there, tables.child[edge], tables.many.shape[0] - 1)


def mask_logits(tables: TrieTables, nodes: jax.Array, logits: jax.Array) -> jax.Array:
    """`logits` float32 [V, B, W] with -inf for the tokens that may not follow at `nodes`.

    `nodes` are int32 [B, W]; V is that of `Trie.tables`, as is the `</s>` that is allowed at ends.
    """
    vocabulary = logits.shape[0]
    first = tables.first
    row = tables.many[nodes]  # [B, W]
    edges = first[nodes][..., None] + tables.few  # [B, W, F]
    listed = (edges < first[nodes + 1][..., None]) & (row == 0)[..., None]
    ids = tables.token.at[edges].get(mode="clip").astype(jnp.uint32)
    bits = jnp.where(listed, jnp.uint32(1) << (ids % _WORD), jnp.uint32(0))
    words = jnp.moveaxis(tables.masks[row], 2, 0)  # [V / 32, B, W]
    b, w = jnp.indices(nodes.shape)
    # The bits of a node are different ones, so that their sum is their union.
    words = words.at[ids // _WORD, b[..., None], w[..., None]].add(bits)
    number = jnp.arange(_WORD, dtype=jnp.uint32)[:, None, None]
    allowed = (words[:, None] >> number) & 1  # [V / 32, 32, B, W]
    allowed = allowed.reshape(-1, *nodes.shape)[:vocabulary]
    return jnp.where(allowed == 1, logits, -jnp.inf)
