"""How far a hypothesis is with the phrases that it must contain: states that a device keeps.

The two kinds of constraints are pytrees of tables with the same methods; a compiled program is for
one kind and one set of sizes. `bart_hk.generation.constraints` makes them and searches with them.

Shapes: B batch, N hypotheses of a row, P positions of a row's phrases, E edges of a position, K
nodes of a row's trie, M tokens offered to a hypothesis. B, P, E, K and M are powers of two or given
by the caller, so other phrases of about the same size find the program compiled.

Source: fairseq `token_generation_constraints.py`. Where these differ from fairseq's, these are
right, and each class says where that is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray
Phrases = Sequence[Sequence[np.ndarray]]  # of each row, of each phrase: ids


def rounded(size: int, least: int) -> int:
    """The first power of two that is not below `size` nor the power of two `least`."""
    return max(least, 1 << max(size - 1, 0).bit_length())


class OrderedConstraints(NamedTuple):
    """Phrases in a given order, with anything or nothing between them.

    A state is the number of constraint tokens that a hypothesis has, int32 [B, N]: it says which
    phrase comes next and how much of it is there. It is finished exactly when the hypothesis holds
    the phrases one after the other without overlap.

    Unlike fairseq's, a phrase that breaks off costs that phrase alone: fairseq forgets all phrases
    that were complete too. And a phrase may begin within a broken-off beginning of itself ("a a b"
    in "a a a b"), as in Knuth, Morris and Pratt's search; fairseq looks at the last token alone.
    The token that begins again is the first of the present phrase, offered from its first token on;
    fairseq offers the first of all phrases, from the second token on and after the last.
    """

    tokens: Array  # int32 [B, P], the phrases in a row; -1 from the end on
    start: Array  # int32 [B, P], where the phrase begins that goes on at a position
    length: Array  # int32 [B], tokens of all phrases
    # Tokens that lead from a position to another one than `start`, and that one.
    edge_tokens: Array  # int32 [B, P, E], -1 where there are fewer
    edge_targets: Array  # int32 [B, P, E]

    @classmethod
    def of(cls, phrases: Phrases, rows: int) -> "OrderedConstraints":
        """Tables of `phrases` on the host; rows beyond them have none."""
        length = np.zeros(rows, np.int32)
        length[: len(phrases)] = [sum(map(len, row)) for row in phrases]
        size = rounded(int(length.max(initial=0)) + 1, 16)
        tokens = np.full((rows, size), -1, np.int32)
        start = np.zeros((rows, size), np.int32)
        edges: list[tuple[int, int, list[tuple[int, int]]]] = []
        for b, row in enumerate(phrases):
            begin = 0
            for phrase in row:
                tokens[b, begin : begin + len(phrase)] = phrase
                start[b, begin : begin + len(phrase)] = begin
                for i, targets in enumerate(_automaton([int(token) for token in phrase])):
                    pairs = [(token, begin + state) for token, state in targets.items()]
                    edges.append((b, begin + i, pairs))
                begin += len(phrase)
            start[b, begin:] = begin
        width = rounded(max((len(pairs) for _, _, pairs in edges), default=1), 4)
        edge_tokens = np.full((rows, size, width), -1, np.int32)
        edge_targets = np.repeat(start[..., None], width, axis=2)
        for b, position, pairs in edges:
            edge_tokens[b, position, : len(pairs)] = [token for token, _ in pairs]
            edge_targets[b, position, : len(pairs)] = [target for _, target in pairs]
        return cls(tokens, start, length, edge_tokens, edge_targets)

    def initial_states(self, count: int) -> jax.Array:
        return jnp.zeros((self.length.shape[0], count), jnp.int32)

    def advance(self, states: jax.Array, tokens: jax.Array) -> jax.Array:
        b = jnp.arange(states.shape[0])[:, None]
        hit = jnp.asarray(self.edge_tokens)[b, states] == tokens[..., None]  # [B, N, E]
        target = jnp.max(jnp.where(hit, jnp.asarray(self.edge_targets)[b, states], 0), axis=2)
        return jnp.where(jnp.any(hit, axis=2), target, jnp.asarray(self.start)[b, states])

    def satisfied(self, states: jax.Array) -> jax.Array:
        return states

    def may_end(self, states: jax.Array) -> jax.Array:
        return states == jnp.asarray(self.length)[:, None]

    def next_tokens(self, states: jax.Array) -> jax.Array:
        b = jnp.arange(states.shape[0])[:, None]
        tokens = jnp.asarray(self.tokens)
        onward = tokens[b, states]
        begin = jnp.asarray(self.start)[b, states]
        again = tokens[b, begin]
        again = jnp.where((begin < states) & (again != onward), again, -1)
        return jnp.stack([onward, again], axis=2)


def _automaton(phrase: list[int]) -> list[dict[int, int]]:
    """For each number of tokens of `phrase` that are there: {token: how many are there after it}.

    After any other token there are none.
    """
    states: list[dict[int, int]] = []
    longest = 0  # of the phrase without its first token, how much is there after reading it
    for i, token in enumerate(phrase):
        back = states[longest] if i else {}
        states.append({**back, token: i + 1})
        if i:
            longest = back.get(token, 0)
    return states


class UnorderedStates(NamedTuple):
    node: jax.Array  # int32 [B, N], where in the trie the hypothesis is; 0: the root
    generated: jax.Array  # int32 [B, N, K], phrases complete or begun that go through a node
    completed: jax.Array  # int32 [B, N, K], phrases that were left behind complete at a node


class UnorderedConstraints(NamedTuple):
    """Phrases in any order, with anything or nothing between them, in a trie of K nodes.

    A state (`UnorderedStates`) is a place in the trie and counts for each of its nodes. A
    hypothesis walks down the trie; where the next token leads nowhere, or only to phrases that are
    all there, the longest phrase that it has walked over and that is still missing counts as
    complete, the tokens after that are given back, and it walks from the root again. It is finished
    when every phrase is complete, as many times as it was given. Then the hypothesis holds all of
    them without overlap. The reverse does not hold: a phrase that begins within another one that
    breaks off is not seen ("b" in "a b", where "a b c" was meant), and must come once more.

    Unlike fairseq's, a phrase may begin again with the very token that breaks it off ("a b" in
    "a a b"): fairseq asks whether the phrase is still missing before it has given its tokens back.
    """

    parent: Array  # int32 [B, K], -1 of the root and beyond the last node
    token: Array  # int32 [B, K], -1 likewise
    depth: Array  # int32 [B, K]
    ends: Array  # int32 [B, K], phrases that end at a node
    below: Array  # int32 [B, K], phrases that end at a node or below it
    path: Array  # bool [B, K, K]: is the second node on the way from the root to the first?
    offered: Array  # int32 [B, K, M], tokens that lead on from a node or the root, else -1
    phrases: Array  # int32 [B], how many there are

    @classmethod
    def of(cls, phrases: Phrases, rows: int) -> "UnorderedConstraints":
        """Tables of `phrases` on the host; rows beyond them have none."""
        tries = [_Trie(row) for row in phrases]
        size = rounded(max((len(trie.parent) for trie in tries), default=1), 16)
        parent = np.full((rows, size), -1, np.int32)
        token = np.full((rows, size), -1, np.int32)
        depth, ends, below = (np.zeros((rows, size), np.int32) for _ in range(3))
        path = np.zeros((rows, size, size), np.bool_)
        offers = [trie.offers() for trie in tries]
        width = rounded(max((len(ids) for offer in offers for ids in offer), default=1), 4)
        offered = np.full((rows, size, width), -1, np.int32)
        count = np.zeros(rows, np.int32)
        count[: len(phrases)] = [len(row) for row in phrases]
        for b, (trie, offer) in enumerate(zip(tries, offers, strict=True)):
            nodes = len(trie.parent)
            parent[b, :nodes] = trie.parent
            token[b, :nodes] = trie.token
            ends[b, :nodes] = trie.ends
            for node in range(1, nodes):  # parents come before their children
                above = trie.parent[node]
                depth[b, node] = depth[b, above] + 1
                path[b, node] = path[b, above]
                path[b, node, node] = True
            below[b] = path[b].T.astype(np.int32) @ ends[b]
            for node, ids in enumerate(offer):
                offered[b, node, : len(ids)] = ids
        return cls(parent, token, depth, ends, below, path, offered, count)

    def initial_states(self, count: int) -> UnorderedStates:
        rows, size = self.parent.shape
        zeros = jnp.zeros((rows, count, size), jnp.int32)
        return UnorderedStates(jnp.zeros((rows, count), jnp.int32), zeros, zeros)

    def advance(self, states: UnorderedStates, tokens: jax.Array) -> UnorderedStates:
        node, generated, completed = states
        number = jnp.arange(self.parent.shape[1])  # [K]
        right_token = jnp.asarray(self.token)[:, None] == tokens[..., None]  # [B, N, K]
        parent, below = jnp.asarray(self.parent)[:, None], jnp.asarray(self.below)[:, None]

        def child(of: jax.Array, generated: jax.Array) -> jax.Array:
            hit = (parent == of[..., None]) & right_token & (generated < below)
            return jnp.max(jnp.where(hit, number, 0), axis=2)

        on = child(node, generated)  # [B, N], 0: nowhere
        # Otherwise: what is complete, what is given back, and from the root again.
        depth, ends = jnp.asarray(self.depth)[:, None], jnp.asarray(self.ends)[:, None]
        path = jnp.asarray(self.path)[jnp.arange(node.shape[0])[:, None], node]
        missing = path & (completed < ends)
        kept = jnp.max(jnp.where(missing, depth, 0), axis=2, keepdims=True)
        given_back = generated - (path & (depth > kept))
        counted = completed + (missing & (depth == kept))
        again = child(jnp.zeros_like(node), given_back)

        node = jnp.where(on > 0, on, again)
        broken = (on == 0)[..., None]
        generated = jnp.where(broken, given_back, generated)
        generated = generated + ((number == node[..., None]) & (number > 0))
        return UnorderedStates(node, generated, jnp.where(broken, counted, completed))

    def satisfied(self, states: UnorderedStates) -> jax.Array:
        return jnp.sum(states.generated, axis=2)

    def may_end(self, states: UnorderedStates) -> jax.Array:
        b = jnp.arange(states.node.shape[0])[:, None]
        here = jnp.take_along_axis(states.completed, states.node[..., None], 2)[..., 0]
        complete = jnp.sum(states.completed, axis=2) + (
            here < jnp.asarray(self.ends)[b, states.node]
        )
        return complete == jnp.asarray(self.phrases)[:, None]

    def next_tokens(self, states: UnorderedStates) -> jax.Array:
        b = jnp.arange(states.node.shape[0])[:, None]
        return jnp.asarray(self.offered)[b, states.node]


class _Trie:
    """The phrases of one row: lists over nodes, the root first."""

    def __init__(self, phrases: Sequence[np.ndarray]) -> None:
        self.parent, self.token, self.ends = [-1], [-1], [0]
        self.children: list[dict[int, int]] = [{}]
        for phrase in phrases:
            node = 0
            for token in map(int, phrase):
                if token not in self.children[node]:
                    self.children[node][token] = len(self.parent)
                    self.parent.append(node)
                    self.token.append(token)
                    self.ends.append(0)
                    self.children.append({})
                node = self.children[node][token]
            self.ends[node] += 1

    def offers(self) -> list[list[int]]:
        """Of each node, the tokens that lead on from it or from the root, its own first."""
        return [list({**own, **self.children[0]}) for own in self.children]
