"""Where a loaded BART looks: the attention weights of a source and a target.

Shapes: see the glossary in `bart_hk.model.layers`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.data.batching import LENGTH_BUCKETS, buckets_up_to
from bart_hk.hub.texts import TextBART
from bart_hk.model import BART, Params


class AttentionWeights(NamedTuple):
    """Of one source and one target; each row of the last two axes sums to 1.

    What a model of one stack does not have has no layers, L = 0.

    encoder: float32 [L, H, S, S], of the encoder's layers.
    decoder: float32 [L, H, T, T], of the decoder's layers; nobody looks ahead.
    cross: float32 [L, H, T, S], of the decoder's layers to the source; [L, H, T, n] to the n latent
        tokens of a bottleneck.
    src_tokens, prev_output_tokens: int32 [S] and [T], what encoder and decoder read.
    """

    encoder: np.ndarray
    decoder: np.ndarray
    cross: np.ndarray
    src_tokens: np.ndarray
    prev_output_tokens: np.ndarray


@functools.partial(jax.jit, static_argnums=0)
def _weights(
    bart: BART, params: Params, src_tokens: jax.Array, previous: jax.Array
) -> tuple[jax.Array, ...]:
    """Of int32 [1, S] and [1, T], layers stacked: [L, H, S, S], [L, H, T, T] and [L, H, T, S]."""
    kinds: list[Any] = [None, None, None]
    source = None
    if "encoder" in bart.config.sides:
        source = bart.encode(params, src_tokens, return_attention=True)
        kinds[0] = source.attentions
    if "decoder" in bart.config.sides:
        target = bart.decode(params, previous, source, return_attention=True)
        kinds[1:] = target.self_attentions, target.cross_attentions
    nothing = jnp.zeros((0, 0, 0, 0), jnp.float32)
    return tuple(jnp.stack([layer[0] for layer in kind]) if kind else nothing for kind in kinds)


class AttentiveBART(TextBART):
    """A loaded BART whose attention can be looked at."""

    def attention(self, source: Any, target: Any = None) -> AttentionWeights:
        """The weights with which the model reads a source and, teacher-forced, a target.

        Args:
            source: a text, or ids [S] as `encode` gives them.
            target: what the decoder writes, likewise; default: the source, which is the one text
                of a model of one stack. The decoder reads it with its last token in front, as in
                training.

        Raises:
            ValueError: a text has more tokens than the model has positions, or none; or there is
                a target, and one stack.
        """
        self._check_one_vocabulary("attention")
        if target is not None:
            for side in ("encoder", "decoder"):
                self.config.require(side, "attention between a source and a target")
        rows = [self._ids_of(source)]
        rows.append(rows[0] if target is None else self._ids_of(target))
        padded = []
        limits = self.config.max_source_positions, self.config.max_target_positions
        for name, row, limit in zip(("source", "target"), rows, limits, strict=True):
            if not 0 < len(row) <= limit:
                raise ValueError(
                    f"the {name} has {len(row)} tokens; this model takes 1 to {limit} "
                    "(encode(..., truncate=True) cuts a text to fit)"
                )
            length = next(b for b in buckets_up_to(limit, LENGTH_BUCKETS) if b >= len(row))
            fill = (0, length - len(row))
            shifted = np.roll(row, 1) if name == "target" else row
            padded.append(np.pad(shifted, fill, constant_values=self.config.pad_token_id)[None])
        encoder, decoder, cross = jax.device_get(_weights(self.model, self._params, *padded))
        s, t = map(len, rows)
        return AttentionWeights(
            encoder[..., :s, :s],
            decoder[..., :t, :t],
            cross[..., :t, : self.config.attended(s)],
            padded[0][0, :s],
            padded[1][0, :t],
        )

    def _ids_of(self, given: Any) -> np.ndarray:
        ids = np.asarray(self.encode(given) if isinstance(given, str) else given)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"give a text or ids [T], not an array {ids.dtype}{list(ids.shape)}")
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.config.vocab_size:
            raise ValueError(
                f"an id is {ids.max() if ids.min() >= 0 else ids.min()}; the vocabulary has "
                f"{self.config.vocab_size}"
            )
        return ids.astype(np.int32)

    def token_labels(self, tokens: Any) -> list[str]:
        """How each of the ids [T] is written, the special ones by their names."""
        dictionary, config = self.text.dictionary, self.config
        special: set[int | None] = {config.bos_token_id, config.pad_token_id, config.eos_token_id}
        special |= {config.unk_token_id, self.text.mask_id}
        return [
            dictionary.symbols[i] if i in special else self.text.decode([i])
            for i in np.asarray(tokens).tolist()
        ]
