"""How probable given targets, and next tokens, are: one pass over each, and no search.

Shapes: B batch, T target length, S source length, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.data.batching import bucket, buckets_up_to, pad_rows
from bart_hk.generation.lists import (
    BATCH_SIZE,
    MAX_TOKENS,
    Hypothesis,
    checked_rows,
    hypothesis,
    plan,
)
from bart_hk.model import BART, Ensemble

# Positions whose logits are in memory at once: those of a batch would be by far its largest array.
_CHUNK = 256


class _Batch(NamedTuple):
    rows: np.ndarray  # int64, whose places in the lists these are; the rest is padding
    src_tokens: np.ndarray  # int32 [B, S]
    targets: np.ndarray  # int32 [B, T]


class Scorer:
    """Scores with a network or an ensemble, and keeps what it has compiled.

    Shapes come from short lists, as a `Generator`'s do; the lengths of source and target and
    whether attention is asked for are all that leads to another compilation.
    """

    def __init__(self, bart: BART | Ensemble) -> None:
        self.bart: Any = bart  # the two have the same methods
        self._score = jax.jit(self._log_probs, static_argnames="attention")
        self._next = jax.jit(self._best_next, static_argnames="count")

    def score(
        self,
        params: Any,
        sources: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        *,
        max_tokens: int = MAX_TOKENS,
        batch_size: int = BATCH_SIZE,
        attention: bool = False,
    ) -> list[Hypothesis]:
        """How probable each target is, given its source (fairseq's `SequenceScorer`).

        Args:
            params: of `bart`; of an ensemble those of each member.
            sources: int arrays [S_i] of ids, with their `<s>` and `</s>`, without padding.
            targets: int arrays [N_i] of ids, one for each source, with their `<s>` and `</s>`.
            max_tokens: bound on the padded tokens of a batch, of sources as of targets.
            batch_size: bound on the rows of a batch.
            attention: fill in "attention", which takes S_i * N_i numbers for each pair (a
                decoder_only model, which ignores the sources, has none).

        Returns:
            One dictionary for each target, as `Generator.generate`'s; "score" is the mean of the
            positional scores.

        Raises:
            ValueError: a row is empty, too long or holds an id outside the vocabulary, or there are
                not as many targets as sources; or the model is encoder_only.
        """
        self.bart.config.require("decoder", "scoring a text")
        sources, targets = self._checked(sources, targets, "target")
        results: list[Hypothesis] = [{}] * len(sources)
        for batch in self._batches(sources, targets, max_tokens, batch_size):
            scores, weights = jax.device_get(
                self._score(params, batch.src_tokens, batch.targets, attention=attention)
            )
            for row, i in enumerate(batch.rows):
                n, seen = len(targets[i]), self.bart.config.attended(len(sources[i]))
                results[i] = hypothesis(
                    targets[i],
                    np.mean(scores[row, :n]),
                    scores[row, :n],
                    None if weights is None else weights[row, :n, :seen].T,
                )
        return results

    def next_tokens(
        self,
        params: Any,
        sources: Sequence[np.ndarray],
        prefixes: Sequence[np.ndarray],
        count: int,
        *,
        max_tokens: int = MAX_TOKENS,
        batch_size: int = BATCH_SIZE,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The most probable tokens after each prefix, best first: (ids, log probabilities).

        Args:
            prefixes: int arrays [N_i], the target so far, with `<s>` and without the decoder's
                start token. Of an encoder_only model what stands in the source before the token
                that is asked for.
            count: how many tokens; int32 [count] and float32 [count] for each row (at most V).
            params, sources, max_tokens, batch_size: as for `score`.

        Raises:
            ValueError: as for `score`; or a prefix leaves no position for another token.
        """
        # A prefix shares its positions with the start token.
        sources, prefixes = self._checked(sources, prefixes, "prefix", room=1)
        count = min(count, self.bart.config.vocab_size)
        # What follows is scored where a target has its last token, whatever that is.
        targets = [np.append(prefix, self.bart.config.eos_token_id) for prefix in prefixes]
        results: list[Any] = [None] * len(sources)
        for batch in self._batches(sources, targets, max_tokens, batch_size):
            last = np.zeros(len(batch.targets), np.int32)
            last[: len(batch.rows)] = [len(prefixes[i]) for i in batch.rows]
            ids, scores = jax.device_get(
                self._next(params, batch.src_tokens, batch.targets, last, count=count)
            )
            for row, i in enumerate(batch.rows):
                results[i] = (ids[row], scores[row])
        return results

    def _checked(
        self, sources: Sequence[Any], targets: Sequence[Any], what: str, room: int = 0
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources do not go with {len(targets)} {what}s")
        config = self.bart.config
        size = config.vocab_size
        return (
            checked_rows("source", sources, config.max_source_positions, config.source_vocabulary),
            checked_rows(what, targets, config.max_target_positions - room, size),
        )

    def _batches(
        self,
        sources: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        max_tokens: int,
        batch_size: int,
    ) -> Iterator[_Batch]:
        """Pairs whose targets have the same padded length, planned by their sources' lengths."""
        config = self.bart.config
        pad = config.pad_token_id
        sizes = np.array([len(row) for row in sources], np.int64)
        widths = buckets_up_to(config.max_target_positions)
        width_of = np.array([bucket(len(row), widths) for row in targets], np.int64)
        for width in map(int, np.unique(width_of)):
            group = np.flatnonzero(width_of == width)
            fitting = max(1, min(batch_size, max_tokens // width))
            planned = plan(sizes[group], config.max_source_positions, max_tokens, fitting)
            for batch, (count, length) in planned:
                rows = group[batch]
                yield _Batch(
                    rows,
                    pad_rows([sources[i] for i in rows], pad, length, count),
                    pad_rows([targets[i] for i in rows], pad, width, count),
                )

    # The methods below are compiled.

    def _decode(self, params: Any, src_tokens: jax.Array, targets: jax.Array, attention: bool):
        """The decoder's output where it has read what comes before each of the targets [B, T]."""
        first = jnp.full_like(targets[:, :1], self.bart.config.decoder_start_token_id)
        previous = jnp.concatenate([first, targets[:, :-1]], axis=1)
        return self.bart.features(params, src_tokens, previous, return_attention=attention)

    def _log_probs(
        self, params: Any, src_tokens: jax.Array, targets: jax.Array, attention: bool
    ) -> tuple[jax.Array, jax.Array | None]:
        """Log probabilities [B, T] of the targets [B, T], and the attention [B, T, S] or None."""
        decoded = self._decode(params, src_tokens, targets, attention)
        size = targets.size
        chunk = min(_CHUNK, size)
        room = -size % chunk

        def chunks(x: jax.Array) -> jax.Array:
            flat = x.reshape(size, *x.shape[2:])
            padded = jnp.pad(flat, [(0, room)] + [(0, 0)] * (flat.ndim - 1))
            return padded.reshape(-1, chunk, *flat.shape[1:])

        def of_chunk(part: tuple[Any, jax.Array]) -> jax.Array:
            features, target = part
            logits = self.bart.project(params, features)  # [chunk, V]
            chosen = jnp.take_along_axis(logits, target[:, None], 1)[:, 0]
            return chosen - jax.nn.logsumexp(logits, axis=-1)

        scores = jax.lax.map(of_chunk, jax.tree.map(chunks, (decoded.features, targets)))
        scores = scores.reshape(-1)[:size].reshape(targets.shape)
        if decoded.cross_attentions is None:
            return scores, None
        return scores, jnp.mean(decoded.cross_attentions[-1], axis=1)

    def _best_next(
        self,
        params: Any,
        src_tokens: jax.Array,
        targets: jax.Array,
        last: jax.Array,
        count: int,
    ) -> tuple[jax.Array, jax.Array]:
        """The `count` best tokens [B, count] in place of each row's target at `last` [B]."""
        decoded = self._decode(params, src_tokens, targets, attention=False)
        rows = jnp.arange(len(targets))
        features = jax.tree.map(lambda x: x[rows, last], decoded.features)
        log_probs = jax.nn.log_softmax(self.bart.project(params, features), axis=-1)
        scores, ids = jax.lax.top_k(log_probs, count)
        return ids, scores
