"""Several BARTs of one vocabulary as if they were one. Shapes: see `bart_hk.model.layers`."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bart_hk.config import BARTConfig
from bart_hk.model.bart import BART
from bart_hk.model.transformer import DecoderOutput

# Of each member in turn.
Each = Sequence[Any]


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The mean of its members' probabilities, for generation and scoring.

    It has `BART`'s methods; where those take or give parameters, encodings, features or caches,
    these take or give one of each member. Source: fairseq `sequence_generator.py` (EnsembleModel)
    and `sequence_scorer.py`.
    """

    members: tuple[BART, ...]

    @property
    def config(self) -> BARTConfig:
        """The first member's, with the shortest position tables of all."""
        names = ("max_source_positions", "max_target_positions")
        shortest = {n: min(getattr(bart.config, n) for bart in self.members) for n in names}
        return self.members[0].config.replace(**shortest)

    def _each(self, method: str, *arguments: Each) -> tuple[Any, ...]:
        """What the members' method gives for their share of the arguments."""
        shares = zip(*arguments, strict=True)
        return tuple(
            getattr(bart, method)(*share) for bart, share in zip(self.members, shares, strict=True)
        )

    def _same(self, value: Any) -> Each:
        return (value,) * len(self.members)

    def encode(self, params: Each, src_tokens: jax.Array) -> Each:
        return self._each("encode", params, self._same(src_tokens))

    def source(self, params: Each, src_tokens: jax.Array) -> Each:
        return self._each("source", params, self._same(src_tokens))

    def features(
        self,
        params: Each,
        src_tokens: jax.Array,
        prev_output_tokens: jax.Array,
        *,
        return_attention: bool = False,
    ) -> DecoderOutput:
        """The features of each member, and the last layers' mean attention to the source."""
        outputs = [
            bart.features(
                member_params, src_tokens, prev_output_tokens, return_attention=return_attention
            )
            for bart, member_params in zip(self.members, params, strict=True)
        ]
        features = tuple(output.features for output in outputs)
        if not return_attention or outputs[0].cross_attentions is None:
            return DecoderOutput(features)  # type: ignore[arg-type]
        last = [jnp.mean((o.cross_attentions or ())[-1], axis=1, keepdims=True) for o in outputs]
        mean = jnp.mean(jnp.stack(last), axis=0)  # [B, 1, T, S]
        return DecoderOutput(features, cross_attentions=(mean,))  # type: ignore[arg-type]

    def project(self, params: Each, features: Each) -> jax.Array:
        """Log probabilities float32 [..., V]."""
        return _mean(self._each("project", params, features), axis=-1)

    def for_steps(self, params: Each) -> Each:
        return self._each("for_steps", params)

    def start(self, params: Each, encoder_output: Each, beam: int, length: int) -> Each:
        arguments = (params, encoder_output, self._same(beam), self._same(length))
        return self._each("start", *arguments)

    def extend(self, cache: Each, beam: int, length: int) -> Each:
        return self._each("extend", cache, self._same(beam), self._same(length))

    def step(
        self,
        params: Each,
        tokens: jax.Array,
        position: jax.Array,
        cache: Each,
        ancestors: jax.Array,
        temperature: Any = 1.0,
    ) -> tuple[jax.Array, Each, jax.Array]:
        """`BART.step`, with log probabilities float32 [V, B, W] at the temperature."""
        shared = [self._same(value) for value in (tokens, position, ancestors)]
        found = self._each("step", params, shared[0], shared[1], cache, shared[2])
        log_probs = _mean([logits / temperature for logits, _, _ in found], axis=0)
        attention = jnp.mean(jnp.stack([attention for _, _, attention in found]), axis=0)
        return log_probs, tuple(cache for _, cache, _ in found), attention


def _mean(logits: Each, axis: int) -> jax.Array:
    """The logarithm of the mean of the probabilities that logits give along `axis`."""
    log_probs = jnp.stack([jax.nn.log_softmax(x, axis=axis) for x in logits])
    return jax.nn.logsumexp(log_probs, axis=0) - math.log(len(logits))
