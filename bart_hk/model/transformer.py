"""Encoder and decoder. Shapes: see the glossary in `bart_hk.model.layers`.

Post-norm is BART's, pre-norm (`normalize_before`, with a final layer norm) mBART's. Hidden states
are fairseq's: the embedding, then each layer's output, before the final layer norm where there is
one. Source: fairseq `transformer_encoder.py`, `transformer_decoder.py`, `transformer_layer.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from bart_hk.config import BARTConfig
from bart_hk.model.attention import (
    attend_in_steps,
    attention,
    project_key_value,
    project_query,
    remember_and_attend,
)
from bart_hk.model.layers import (
    Parameter,
    dropout,
    embedding,
    layer_drop,
    layer_norm,
    linear,
    linear_and_activate,
    look_up,
    sinusoidal,
)


class Latents(NamedTuple):
    """What a source has become in a bottleneck of n latent tokens of Z numbers.

    mean: float32 [B, n, Z]. Without variances this is the latent itself.
    log_variance: float32 [B, n, Z], or None.
    drawn: float32 [B, n, Z], what the decoder has read: the mean, but with a variance in training.
    """

    mean: jax.Array
    log_variance: jax.Array | None
    drawn: jax.Array


class EncoderOutput(NamedTuple):
    """What the decoder needs of a source.

    encoder_out: [B, S, D], in the compute dtype; [B, n, D] of a bottleneck's n latent tokens.
        Without an encoder S is 0: there is nothing to attend to.
    src_mask: bool [B, S], True at real tokens; [B, n] and all True with a bottleneck.
    hidden_states: L + 1 arrays [B, S, D], or None.
    attentions: L arrays float32 [B, H, S, S], or None.
    latents: of a bottleneck, or None.
    """

    encoder_out: jax.Array
    src_mask: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    attentions: tuple[jax.Array, ...] | None = None
    latents: Latents | None = None


class DecoderOutput(NamedTuple):
    """Teacher-forced decoding: features [B, T, D] before the output projection, and on request.

    Where features are asked for at one position of each row, T is 1 in what the last layer gives.
    Of an encoder_only model (`BART.features`) they are the encoder's, and so is the rest.

    hidden_states: L + 1 arrays [B, T, D], or None.
    self_attentions, cross_attentions: L arrays float32 [B, H, T, T] and [B, H, T, S], or None. The
        latter are None without an encoder, too.
    """

    features: jax.Array
    hidden_states: tuple[jax.Array, ...] | None = None
    self_attentions: tuple[jax.Array, ...] | None = None
    cross_attentions: tuple[jax.Array, ...] | None = None


class Cache(NamedTuple):
    """State of token-by-token decoding of W beams for each of B sources.

    keys, values: per layer [B, H, K, T W] and [B, H, T W, K]; slot (t, w) holds what beam row w
        wrote at step t. Beams never reorder it: `step` is told which slots are a beam's own
        history. T and W are one axis because XLA's CPU compiler copies the whole cache at every
        step where it is reshaped.
    cross_keys, cross_values: per layer [B, H, K, S] and [B, H, S, K], computed once per source;
        empty without an encoder.
    src_mask: bool [B, S].
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    cross_keys: tuple[jax.Array, ...]
    cross_values: tuple[jax.Array, ...]
    src_mask: jax.Array


class Options(NamedTuple):
    """How a stack runs: with dropout or without, and what it returns beside its last layer."""

    training: bool = False
    return_all_hiddens: bool = False
    return_attention: bool = False


def _sublayer(
    x: jax.Array,
    block: Callable[[jax.Array], jax.Array],
    norm: str,
    normalize_before: bool,
    dropout_rate: float,
    training: bool,
    axis: int = -1,
    take: Callable[[jax.Array], jax.Array] = lambda x: x,
) -> jax.Array:
    """Residual connection around `block`, with layer norm `norm` before it or after the sum.

    `take` takes those positions out of `x` that `block` returns.
    """
    if normalize_before:
        return take(x) + dropout(block(layer_norm(x, norm, axis)), dropout_rate, training)
    return layer_norm(take(x), norm, axis, plus=dropout(block(x), dropout_rate, training))


def _feed_forward(
    x: jax.Array, ffn_dim: int, config: BARTConfig, training: bool, axis: int = -1
) -> jax.Array:
    hidden = linear_and_activate(x, ffn_dim, "fc1", config.activation_fn, axis)
    hidden = dropout(hidden, config.activation_dropout, training)
    return linear(hidden, x.shape[axis], "fc2", axis)


class _Stack(hk.Module):
    """What encoder and decoder have in common: the embedding of tokens and positions."""

    def __init__(self, config: BARTConfig, shared: Parameter | None, name: str) -> None:
        """`shared` is the token table [V, D] where there is one for both sides."""
        super().__init__(name=name)
        self.config = config
        self._shared = shared

    @hk.transparent
    def _token_table(self, zero_row: int | None) -> jax.Array:
        rows, width = self.config.vocab_size, self.config.encoder_embed_dim
        return (self._shared or embedding("embed_tokens", rows, width, zero_row))()

    @hk.transparent
    def _of_tokens(self, table: jax.Array, tokens: jax.Array) -> jax.Array:
        """Scaled embeddings [B, T, D] of int32 [B, T], from a table [V, D]."""
        x = look_up(table, tokens)
        return x if self.config.no_scale_embedding else x * self.config.encoder_embed_dim**0.5

    @hk.transparent
    def _embed(
        self,
        x: jax.Array,  # [B, T, D]: see `_of_tokens`
        positions: jax.Array,  # int32, broadcastable to [B, T]; 0 for the first token
        max_positions: int | None,  # of the table; None where sines and cosines stand for one
        training: bool,
    ) -> jax.Array:
        """What stands for the tokens plus positions, normalised: [B, T, D]."""
        config = self.config
        offset = config.position_offset
        # fairseq's padding row, the one before the first position, starts at zero.
        zero_row = offset - 1 if offset else None
        if max_positions is None:
            x = x + sinusoidal(positions + offset, x.shape[-1]).astype(x.dtype)
        else:
            rows = embedding("embed_positions", max_positions + offset, x.shape[-1], zero_row)()
            x = x + rows[positions + offset]
        if config.layernorm_embedding:
            x = layer_norm(x, "layernorm_embedding")
        return dropout(x, config.dropout, training)


class Encoder(_Stack):
    """int32 [B, S] ids to `EncoderOutput`."""

    def __init__(
        self,
        config: BARTConfig,
        shared: Parameter | None,
        name: str,
        source_encoder: "Encoder | None" = None,
    ) -> None:
        """The output of `source_encoder` takes the place of token embeddings."""
        super().__init__(config, shared, name)
        self._source_encoder = source_encoder

    @hk.transparent
    def _tokens(self) -> jax.Array:
        return self._token_table(zero_row=self.config.pad_token_id)

    @hk.name_like("__call__")
    def tied_projection(self) -> jax.Array:
        """As `Decoder.tied_projection`, where there is no decoder."""
        return self._tokens()

    def __call__(self, src_tokens: jax.Array, options: Options) -> EncoderOutput:
        x, src_mask = self.embed(src_tokens, options.training)
        states, attentions = [x], []
        for i in range(self.config.encoder_layers):
            x, weights = self.layer(x, src_mask, options.training, i)
            states.append(x)
            attentions.append(weights)
        return EncoderOutput(
            self.finish(x),
            src_mask,
            tuple(states) if options.return_all_hiddens else None,
            tuple(attentions) if options.return_attention else None,
        )

    @hk.name_like("__call__")
    def embed(self, src_tokens: jax.Array, training: bool) -> tuple[jax.Array, jax.Array]:
        """What the first layer reads, [B, S, D], and the mask, bool [B, S]."""
        config = self.config
        src_mask = src_tokens != config.pad_token_id
        # Positions count real tokens, so a row's result is the same wherever its padding is.
        positions = jnp.maximum(jnp.cumsum(src_mask, axis=1) - 1, 0)
        limit = config.max_source_positions if config.encoder_learned_pos else None
        if self._source_encoder is None:
            x = self._of_tokens(self._tokens(), src_tokens)
        else:  # not scaled: it is as large as scaled embeddings are
            x = self._source_encoder(src_tokens, Options(training)).encoder_out
        x = self._embed(x, positions, limit, training)
        return x * src_mask[..., None].astype(x.dtype), src_mask

    @hk.name_like("__call__")
    def layer(
        self, x: jax.Array, src_mask: jax.Array, training: bool, number: int
    ) -> tuple[jax.Array, jax.Array]:
        """A layer, or in training perhaps none: [B, S, D], and attention weights [B, H, S, S]."""
        with hk.name_scope(f"layers_{number}"):
            y, weights = self._layer(x, src_mask[:, None, None], training)
        return layer_drop(y, x, self.config.encoder_layerdrop, training), weights

    @hk.name_like("__call__")
    def finish(self, x: jax.Array) -> jax.Array:
        """The last layer's output [B, S, D] as the decoder reads it."""
        return layer_norm(x, "layer_norm") if self.config.encoder_normalize_before else x

    @hk.transparent
    def _layer(self, x: jax.Array, mask: jax.Array, training: bool) -> tuple[jax.Array, jax.Array]:
        """One layer: its output [B, S, D] and attention weights [B, H, S, S]."""
        config = self.config
        pre, rate = config.encoder_normalize_before, config.dropout
        heads, attention_rate = config.encoder_attention_heads, config.attention_dropout
        inner = config.attention_dim("encoder")
        weights: list[jax.Array] = []

        def attend_self(h: jax.Array) -> jax.Array:
            out, attended = attention(
                h, h, mask, heads, inner, attention_rate, training, "self_attn"
            )
            weights.append(attended)
            return out

        def feed_forward(h: jax.Array) -> jax.Array:
            return _feed_forward(h, config.encoder_ffn_embed_dim, config, training)

        x = _sublayer(x, attend_self, "self_attn_layer_norm", pre, rate, training)
        return _sublayer(x, feed_forward, "final_layer_norm", pre, rate, training), weights[0]


class Decoder(_Stack):
    """int32 [B, T] ids and an encoded source to features, all at once or token by token."""

    @hk.transparent
    def _tokens(self) -> jax.Array:
        # fairseq leaves the pad row of a table that is also the output projection as it is drawn.
        tied = self.config.share_decoder_input_output_embed
        return self._token_table(zero_row=None if tied else self.config.pad_token_id)

    @hk.transparent
    def _rows(self) -> int | None:
        """Of the position table; None if there is none."""
        return self.config.max_target_positions if self.config.decoder_learned_pos else None

    def __call__(
        self,
        prev_output_tokens: jax.Array,  # int32 [B, T], right-padded
        encoder_out: jax.Array,  # [B, S, D]
        src_mask: jax.Array,  # bool [B, S]
        options: Options,
        at: jax.Array | None = None,  # int32 [B]
    ) -> DecoderOutput:
        """Teacher-forced. Padding on the right needs no mask beside the causal one.

        With `at`, the last layer computes the features of that position of each row alone.
        """
        training, layers = options.training, self.config.decoder_layers
        x = self.embed(prev_output_tokens, training)
        states: list[jax.Array] = [x]
        selfs: list[jax.Array] = []
        crosses: list[jax.Array] = []
        for i in range(layers):
            last = at if i + 1 == layers else None
            x, attended, *crossed = self.layer(x, encoder_out, src_mask, training, i, last)
            states.append(x)
            selfs.append(attended)
            crosses += crossed
        return DecoderOutput(
            self.finish(x),
            tuple(states) if options.return_all_hiddens else None,
            tuple(selfs) if options.return_attention else None,
            tuple(crosses) if options.return_attention and crosses else None,
        )

    @hk.name_like("__call__")
    def embed(self, prev_output_tokens: jax.Array, training: bool) -> jax.Array:
        """What the first layer reads, [B, T, D]."""
        positions = jnp.arange(prev_output_tokens.shape[1])
        x = self._of_tokens(self._tokens(), prev_output_tokens)
        return self._embed(x, positions, self._rows(), training)

    @hk.name_like("__call__")
    def layer(
        self,
        x: jax.Array,  # [B, T, D]
        encoder_out: jax.Array,  # [B, S, D]
        src_mask: jax.Array,  # bool [B, S]
        training: bool,
        number: int,
        at: jax.Array | None = None,  # int32 [B]
    ) -> tuple[jax.Array, ...]:
        """A layer, or in training perhaps none: [B, T, D], and the weights of both attentions,
        [B, H, T, T] and, with an encoder, [B, H, T, S]. With `at`, it computes that position of
        each row alone."""
        config = self.config
        heads, rate = config.decoder_attention_heads, config.attention_dropout
        inner = config.attention_dim("decoder")
        weights: list[jax.Array] = []
        positions = jnp.arange(x.shape[1])
        if at is None:
            mask = positions <= positions[:, None]
        else:
            mask = (positions <= at[:, None])[:, None, None]

        def take(h: jax.Array) -> jax.Array:
            return h if at is None else jnp.take_along_axis(h, at[:, None, None], axis=1)

        def attend_self(h: jax.Array) -> jax.Array:
            out, attended = attention(take(h), h, mask, heads, inner, rate, training, "self_attn")
            weights.append(attended)
            return out

        def attend_source(h: jax.Array) -> jax.Array:
            mask = src_mask[:, None, None]
            out, attended = attention(
                h, encoder_out, mask, heads, inner, rate, training, "encoder_attn"
            )
            weights.append(attended)
            return out

        with hk.name_scope(f"layers_{number}"):
            y = self._layer(x, attend_self, attend_source, training, take=take)
        x = layer_drop(y, take(x), config.decoder_layerdrop, training)
        return x, *weights

    @hk.name_like("__call__")
    def finish(self, x: jax.Array) -> jax.Array:
        """The last layer's output [B, T, D] as the output projection reads it."""
        return self._final_norm(x)

    @hk.transparent
    def _layer(
        self,
        x: jax.Array,
        self_attention: Callable[[jax.Array], jax.Array],
        cross_attention: Callable[[jax.Array], jax.Array],
        training: bool,
        axis: int = -1,
        take: Callable[[jax.Array], jax.Array] = lambda x: x,
    ) -> jax.Array:
        """One layer; how its attentions find their keys is the caller's.

        `take` takes those positions out of `x` for which `self_attention` has queries.
        """
        config = self.config
        pre, rate = config.decoder_normalize_before, config.dropout

        def feed_forward(h: jax.Array) -> jax.Array:
            return _feed_forward(h, config.decoder_ffn_embed_dim, config, training, axis)

        x = _sublayer(x, self_attention, "self_attn_layer_norm", pre, rate, training, axis, take)
        if "encoder" in config.sides:
            x = _sublayer(x, cross_attention, "encoder_attn_layer_norm", pre, rate, training, axis)
        return _sublayer(x, feed_forward, "final_layer_norm", pre, rate, training, axis)

    @hk.transparent
    def _final_norm(self, x: jax.Array, axis: int = -1) -> jax.Array:
        return layer_norm(x, "layer_norm", axis) if self.config.decoder_normalize_before else x

    @hk.name_like("__call__")
    def start(
        self,
        encoder_out: jax.Array,  # [B, S, D]
        src_mask: jax.Array,  # bool [B, S]
        beam: int,
        length: int,
    ) -> Cache:
        """The cache before the first step: cross keys and values, and room for `length` steps."""
        heads, inner = self.config.decoder_attention_heads, self.config.attention_dim("decoder")
        layers, cross = self.config.decoder_layers, []
        for i in range(layers if "encoder" in self.config.sides else 0):
            with hk.name_scope(f"layers_{i}"), hk.name_scope("encoder_attn"):
                cross.append(project_key_value(encoder_out, heads, inner))
        batch, width = encoder_out.shape[0], inner // heads
        keys = jnp.zeros((batch, heads, width, length * beam), encoder_out.dtype)
        values = jnp.zeros((batch, heads, length * beam, width), encoder_out.dtype)
        return Cache(
            keys=(keys,) * layers,
            values=(values,) * layers,
            cross_keys=tuple(key for key, _ in cross),
            cross_values=tuple(value for _, value in cross),
            src_mask=src_mask,
        )

    @hk.name_like("__call__")
    def step(
        self,
        tokens: jax.Array,  # int32 [B, W]
        position: jax.Array,  # int32 scalar, 0 for the decoder start token
        cache: Cache,
        ancestors: jax.Array,  # bool [B, W, T, W]: may beam w see slot (t, w')?
    ) -> tuple[jax.Array, Cache, jax.Array]:
        """One token of every beam: features float32 [D, B, W], the cache with this step written,
        and the last layer's attention to the source, averaged over heads, float32 [B, W, S] (S is 0
        without an encoder)."""
        config = self.config
        heads, inner = config.decoder_attention_heads, config.attention_dim("decoder")
        x = self._embed(self._of_tokens(self._tokens(), tokens), position, self._rows(), False)
        x = jnp.moveaxis(x.astype(jnp.float32), -1, 0)  # [D, B, W]: see `bart_hk.model.layers`
        keys, values = list(cache.keys), list(cache.values)
        last = config.decoder_layers - 1
        mask = ancestors.reshape(*ancestors.shape[:2], -1)  # [B, W, T W]
        source_mask = cache.src_mask[:, None]
        crosses: list[jax.Array] = []

        for i in range(config.decoder_layers):

            def attend_self(h: jax.Array, i: int = i) -> jax.Array:
                with hk.name_scope("self_attn"):
                    query = project_query(h, heads, inner, axis=0)
                    key, value = (linear(h, inner, f"{n}_proj", axis=0) for n in "kv")
                    mixed, keys[i], values[i] = remember_and_attend(
                        query, key, value, keys[i], values[i], mask, position
                    )
                    return linear(mixed, h.shape[0], "out_proj", axis=0)

            def attend_source(h: jax.Array, i: int = i) -> jax.Array:
                with hk.name_scope("encoder_attn"):
                    query = project_query(h, heads, inner, axis=0)
                    seen = (cache.cross_keys[i], cache.cross_values[i], source_mask)
                    mixed, weights = attend_in_steps(query, *seen, with_weights=i == last)
                    crosses.append(weights)
                    return linear(mixed, h.shape[0], "out_proj", axis=0)

            with hk.name_scope(f"layers_{i}"):
                x = self._layer(x, attend_self, attend_source, False, axis=0)

        cache = cache._replace(keys=tuple(keys), values=tuple(values))
        nowhere = jnp.zeros((*tokens.shape, 0), jnp.float32)
        attended = jnp.mean(crosses[-1], axis=1) if crosses else nowhere
        return self._final_norm(x, axis=0), cache, attended

    @hk.name_like("__call__")
    def tied_projection(self) -> jax.Array:
        """The token table [V, D], where the output projection is its transpose."""
        return self._tokens()


def extend(cache: Cache, length: int, beam: int) -> Cache:
    """`cache` with room for `length` steps of `beam` rows; what it holds stays where it is."""

    def grow(x: jax.Array, axis: int) -> jax.Array:
        room = [(0, 0)] * x.ndim
        room[axis] = (0, length * beam - x.shape[axis])
        return jnp.pad(x, room)

    return cache._replace(
        keys=tuple(grow(x, 3) for x in cache.keys), values=tuple(grow(x, 2) for x in cache.values)
    )
