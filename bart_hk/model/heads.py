"""Classification heads: transforms of their own over the decoder's features.

A head's parameters never enter the tree that a compiled `encode` or `decode` receives, so
registering one compiles nothing but the head.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import haiku as hk
import jax
import jax.numpy as jnp

from bart_hk.config import BARTConfig
from bart_hk.model.bart import BART, Params
from bart_hk.model.layers import activate, dropout


@dataclasses.dataclass(frozen=True)
class ClassificationHead:
    """dropout -> dense -> activation -> dropout -> out_proj (fairseq BARTClassificationHead).

    Attributes:
        config: gives the width D, `pooler_activation_fn` and `pooler_dropout`.
        num_classes: C, the number of outputs (1 for regression).
        inner_dim: width of the hidden layer, D if None.
    """

    config: BARTConfig
    num_classes: int
    inner_dim: int | None = None

    @functools.cached_property
    def _transformed(self) -> hk.Transformed:
        config = self.config

        def linear(x: jax.Array, size: int, name: str) -> jax.Array:
            # fairseq creates heads after init_bert_params, so they keep torch's default.
            bound = 1.0 / math.sqrt(x.shape[-1])
            uniform = hk.initializers.RandomUniform(-bound, bound)
            return hk.Linear(size, w_init=uniform, b_init=uniform, name=name)(x)

        def head(features: jax.Array, training: bool) -> jax.Array:
            x = dropout(features.astype(jnp.float32), config.pooler_dropout, training)
            x = linear(x, self.inner_dim or config.encoder_embed_dim, "dense")
            x = dropout(activate(x, config.pooler_activation_fn), config.pooler_dropout, training)
            return linear(x, self.num_classes, "out_proj")

        return hk.transform(head)

    @classmethod
    def of(cls, config: BARTConfig, params: Params) -> "ClassificationHead":
        """The head that these parameters are of."""
        inner_dim, num_classes = params["out_proj"]["w"].shape
        return cls(config, num_classes, inner_dim)

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters: dense/{w, b} and out_proj/{w, b}."""
        features = jnp.zeros((1, self.config.encoder_embed_dim))
        return dict(self._transformed.init(key, features, False))

    def apply(self, params: Params, features: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Logits float32 [..., C] of features [..., D]; a key turns dropout on."""
        return self._transformed.apply(params, key, features, key is not None)


def sentence_ends(src_tokens: jax.Array, eos: int) -> jax.Array:
    """The last place of `eos` in each row of int32 [B, T]: int32 [B]."""
    is_eos = src_tokens == eos
    return is_eos.shape[1] - 1 - jnp.argmax(is_eos[:, ::-1], axis=1)


def sentence_representation(
    bart: BART,
    params: Params,
    src_tokens: jax.Array,
    prev_output_tokens: jax.Array,
    keys: Sequence[jax.Array | None] = (None, None),
) -> jax.Array:
    """What a head classifies: the features [B, D] at the last `</s>` of each source: the decoder's,
    or an encoder_only model's.

    Unlike fairseq's, rows may hold different numbers of `</s>` (a single sentence beside a pair).

    Args:
        params: of `bart`.
        src_tokens: int32 [B, T], right-padded; each row holds at least one `</s>`.
        prev_output_tokens: int32 [B, T], what the decoder reads at the same positions.
        keys: of encoder and decoder, for dropout; None is evaluation.
    """
    last = sentence_ends(src_tokens, bart.config.eos_token_id)
    found = bart.features(params, src_tokens, prev_output_tokens, keys=keys, at=last)
    return found.features[:, 0]


def head_logits(
    bart: BART,
    params: Params,
    head: Params,
    src_tokens: jax.Array,
    prev_output_tokens: jax.Array,
    key: jax.Array | None = None,
    *,
    at_ends: bool,
) -> jax.Array:
    """What a head gives: float32 [B, T, C] of every token, or [B, C] `at_ends`, at the last `</s>`
    of each source.

    Args:
        params, head: of `bart`, and of the head.
        src_tokens, prev_output_tokens: int32 [B, T], as `sentence_representation` takes them.
        key: turns dropout on; None is evaluation.
    """
    keys = [None] * 3 if key is None else list(jax.random.split(key, 3))
    if at_ends:
        features = sentence_representation(bart, params, src_tokens, prev_output_tokens, keys[:2])
    else:
        features = bart.features(params, src_tokens, prev_output_tokens, keys=keys[:2]).features
    return ClassificationHead.of(bart.config, head).apply(head, features, keys[2])
