"""Features of token ids: planned batches, compiled functions, results in order.

Shapes: see the glossary in `bart_hk.model.layers`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.data.batching import LENGTH_BUCKETS, buckets_up_to, pad_rows, plan_shapes
from bart_hk.model import BART, Params, sentence_representation

# Finer steps than a search's: one pass is little work, so padding counts and compiling is quick.
BUCKETS = tuple(sorted({*LENGTH_BUCKETS, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448, 640, 896}))


def default_max_tokens(platform: str) -> int:
    """Padded tokens of a batch. Few keep a CPU busy, and smaller batches need less padding."""
    return 512 if platform == "cpu" else 8192


class FeatureExtractor:
    """Runs a source through encoder and decoder, as fairseq's `extract_features` does.

    The decoder reads the source shifted right by one, its last token moved to the front. A model of
    one stack has that one's features. Compiles
    once for each shape of `plan_shapes`, and keeps what it has compiled.
    """

    def __init__(self, bart: BART) -> None:
        self.bart = bart
        self._hidden_states = jax.jit(self._run, static_argnames="all_layers")
        self._sentence = jax.jit(self._represent)

    def _run(
        self, params: Params, src_tokens: jax.Array, lengths: jax.Array, all_layers: bool
    ) -> tuple[jax.Array, ...]:
        """Features [B, S, D] of every layer, or of the last alone."""
        shifted = _shift_right(src_tokens, lengths)
        target = self.bart.features(params, src_tokens, shifted, return_all_hiddens=all_layers)
        return target.hidden_states if target.hidden_states is not None else (target.features,)

    def _represent(self, params: Params, src_tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        shifted = _shift_right(src_tokens, lengths)
        return sentence_representation(self.bart, params, src_tokens, shifted)

    def _batches(self, rows: Sequence[np.ndarray], max_tokens: int):
        """Planned batches: which rows, their padded ids [B, S] and lengths [B] (at least 1)."""
        config = self.bart.config
        lengths = [len(row) for row in rows]
        buckets = buckets_up_to(config.max_positions, BUCKETS)
        plan = plan_shapes(lengths, max_tokens=max_tokens, buckets=buckets)
        for batch, (count, length) in plan:
            src_tokens = pad_rows([rows[i] for i in batch], config.pad_token_id, length, count)
            real = np.ones(count, np.int32)
            real[: len(batch)] = [max(1, lengths[i]) for i in batch]
            yield batch, src_tokens, real

    def hidden_states(
        self,
        params: Params,
        rows: Sequence[np.ndarray],
        *,
        all_layers: bool = False,
        max_tokens: int,
    ) -> list[list[np.ndarray]]:
        """For each row of ids [T_i], the features [T_i, D] of all layers or of the last.

        The first of all layers is the embedding. `max_tokens` bounds a batch's padded tokens.
        """
        results: list[list[np.ndarray]] = [[] for _ in rows]
        for batch, src_tokens, lengths in self._batches(rows, max_tokens):
            states = jax.device_get(self._hidden_states(params, src_tokens, lengths, all_layers))
            for position, i in enumerate(batch):
                results[i] = [state[position, : len(rows[i])] for state in states]
        return results

    def sentences(
        self, params: Params, rows: Sequence[np.ndarray], *, max_tokens: int
    ) -> list[tuple[np.ndarray, jax.Array]]:
        """Per batch the indices of its rows and their features at the last `</s>`, [B, D].

        Rows of the array beyond the indices are padding.
        """
        return [
            (batch, self._sentence(params, src_tokens, lengths))
            for batch, src_tokens, lengths in self._batches(rows, max_tokens)
        ]


def _shift_right(src_tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Each row [B, S] with the last of its `lengths` [B] tokens moved to the front."""
    last = jnp.take_along_axis(src_tokens, lengths[:, None] - 1, axis=1)  # [B, 1]
    return jnp.concatenate([last, src_tokens[:, :-1]], axis=1)
