"""BART as pure functions over one parameter tree.

With both stacks it is a BART; with the encoder alone (`flavour=encoder_only`) what BERT is, with
the decoder alone a causal language model, of the same layers. Shapes: see
`bart_hk.model.layers`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp

from bart_hk import kernels
from bart_hk.config import BARTConfig
from bart_hk.model import stacked
from bart_hk.model.latent import Bottleneck
from bart_hk.model.layers import Parameter, compute_in, embedding, product, times
from bart_hk.model.transformer import (
    Cache,
    Decoder,
    DecoderOutput,
    Encoder,
    EncoderOutput,
    Latents,
    Options,
    extend,
)

# Haiku's two-level tree: module path -> parameter name -> array.
Params = dict[str, dict[str, jax.Array]]


class _Functions(NamedTuple):
    """What `hk.multi_transform` makes of the network: functions over one parameter tree."""

    encode: Callable[..., EncoderOutput]
    decode: Callable[..., DecoderOutput]
    project: Callable[..., jax.Array]
    start: Callable[..., Cache]
    step: Callable[..., tuple[jax.Array, Cache, jax.Array, jax.Array]]
    compress: Callable[..., Latents]
    expand: Callable[..., jax.Array]
    # The parts of `encode` and `decode`, for `bart_hk.model.stacked`.
    embed_source: Callable[..., tuple[jax.Array, jax.Array]]
    encoder_layer: Callable[..., tuple[jax.Array, ...]]
    finish_source: Callable[..., jax.Array]
    embed_target: Callable[..., jax.Array]
    decoder_layer: Callable[..., tuple[jax.Array, ...]]
    finish_target: Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class BART:
    """The network of `config`, computing in `dtype` (float32, bfloat16 or float16).

    Parameters may be held in any float dtype; softmax, layer norms and logits are float32. Every
    method is pure and traceable: wrap it in `jax.jit`, `jax.grad`, ... as you like. Where a method
    takes `key`, a `jax.random` key turns dropout on (training); None means evaluation.

    Two options are for training deep networks. `checkpoint_activations` keeps only each layer's
    input for the gradient and computes the layer again; `stack_layers` compiles one layer for each
    side instead of all of them. Neither changes a result, but for the activations that dropout
    takes. They hold where neither hidden states nor attention are asked for.

    Two BARTs of equal config and dtype are equal and hash alike.
    """

    config: BARTConfig
    dtype: Any = jnp.float32
    checkpoint_activations: bool = False
    stack_layers: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", jnp.dtype(self.dtype))
        if not jnp.issubdtype(self.dtype, jnp.floating):
            raise ValueError(f"dtype={self.dtype} is not a floating type; use float32 or bfloat16")

    @functools.cached_property
    def _transformed(self) -> hk.MultiTransformed:
        return hk.multi_transform(self._build)

    def _build(self) -> tuple[Callable[[], None], _Functions]:
        """The modules of the network, and the functions over their parameters."""
        config = self.config
        rows, width = config.vocab_size, config.encoder_embed_dim
        shared = embedding("embed_tokens", rows, width) if config.share_all_embeddings else None
        before = None
        if config.source_encoder_layers:
            before = Encoder(config.source_encoder, None, name="source_encoder")
        encoder = Encoder(config, shared, name="encoder", source_encoder=before)
        decoder = Decoder(config, shared, name="decoder")
        bottleneck = Bottleneck(config, name="bottleneck")
        projection = Parameter("output_projection", "w", (width, rows))
        bias = Parameter("final_logits_bias", "b", (rows,), jnp.zeros)

        tied = config.share_decoder_input_output_embed
        writer = decoder if "decoder" in config.sides else encoder

        def weights_and_bias() -> tuple[jax.Array, jax.Array]:
            """Of the output projection, [V, D] if tied and else [D, V]; and [V]."""
            weights = writer.tied_projection() if tied else projection()
            zero = jnp.zeros(rows, jnp.float32)
            return weights, bias().astype(jnp.float32) if config.final_logits_bias else zero

        def project(features: jax.Array) -> jax.Array:
            weights, offset = weights_and_bias()
            weights = weights.T if tied else weights
            return times(features, weights) + offset

        def step(*args: Any) -> tuple[jax.Array, Cache, jax.Array, jax.Array]:
            features, cache, attention = decoder.step(*args)
            logits = product(features, *weights_and_bias(), output_first=tied)
            return logits, cache, attention, features

        def touch_every_parameter() -> None:
            tokens = jnp.full((1, config.attended(1)), config.eos_token_id, jnp.int32)
            run_once(config, functions, self._nothing(tokens), tokens)

        def computing(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                with compute_in(self.dtype):
                    return function(*args)

            return run

        made: list[Callable[..., Any]] = [encoder, decoder, project]
        made += [decoder.start, step, bottleneck.compress, bottleneck.expand]
        for side in (encoder, decoder):
            made += [side.embed, side.layer, side.finish]
        functions = _Functions(*made)
        return touch_every_parameter, _Functions(*map(computing, made))

    def init(self, key: jax.Array) -> Params:
        """Fresh float32 parameters, initialised as fairseq initialises BART (init_bert_params)."""
        return dict(jax.jit(self._transformed.init)(key))

    def encode(
        self,
        params: Params,
        src_tokens: jax.Array,
        *,
        key: jax.Array | None = None,
        return_all_hiddens: bool = False,
        return_attention: bool = False,
    ) -> EncoderOutput:
        """Encodes int32 [B, S] ids; rows are padded with `config.pad_token_id`.

        With a bottleneck the result is what the decoder reads of the latents, [B, n, D], and the
        latents; hidden states and attention are those of at least n positions.

        Raises:
            ValueError: the model is decoder_only.
        """
        self.config.require("encoder", "encoding a source")
        options = Options(key is not None, return_all_hiddens, return_attention)
        if short := max(0, self.config.n_latent_tokens - src_tokens.shape[1]):
            room = ((0, 0), (0, short))
            src_tokens = jnp.pad(src_tokens, room, constant_values=self.config.pad_token_id)
        functions = self._transformed.apply
        if self._by_layer(options):
            found = stacked.encode(self, functions, params, key, src_tokens)
        else:
            found = functions.encode(params, key, src_tokens, options)
        if not self.config.n_latent_tokens:
            return found
        drawing = None if key is None else jax.random.fold_in(key, 1)
        latents = functions.compress(params, drawing, found.encoder_out, found.src_mask)
        read = self.expand(params, latents.drawn)
        return found._replace(encoder_out=read.encoder_out, src_mask=read.src_mask, latents=latents)

    def expand(self, params: Params, latents: jax.Array) -> EncoderOutput:
        """What the decoder reads of latents, float [B, n, Z], for `decode` and the generator.

        Raises:
            ValueError: the model has no bottleneck, or one of other sizes.
        """
        config = self.config
        wanted = (config.n_latent_tokens, config.latent_token_size)
        if not config.n_latent_tokens:
            raise ValueError("n_latent_tokens=0: this model has no bottleneck, and no latents")
        if latents.ndim != 3 or latents.shape[1:] != wanted:
            raise ValueError(
                f"latents have the shape {latents.shape}, not (B, {wanted[0]}, {wanted[1]}), which "
                "is what this model's have"
            )
        memory = self._transformed.apply.expand(params, None, latents)
        return EncoderOutput(memory, jnp.ones(memory.shape[:2], bool))

    def decode(
        self,
        params: Params,
        prev_output_tokens: jax.Array,
        encoder_output: EncoderOutput | None = None,
        *,
        key: jax.Array | None = None,
        at: jax.Array | None = None,
        return_all_hiddens: bool = False,
        return_attention: bool = False,
    ) -> DecoderOutput:
        """Teacher-forced decoding of int32 [B, T] ids, padded on the right.

        A decoder_only model has no `encoder_output`; others need that of `encode`. Where features
        are wanted at a single position of each row, as for a classification head, `at` (int32 [B])
        spares the last layer the others: features are [B, 1, D] then.

        Raises:
            ValueError: the model is encoder_only.
        """
        self.config.require("decoder", "decoding")
        options = Options(key is not None, return_all_hiddens, return_attention)
        source = self._nothing(prev_output_tokens) if encoder_output is None else encoder_output
        if self._by_layer(options):
            functions = self._transformed.apply
            return stacked.decode(self, functions, params, key, prev_output_tokens, source, at)
        return self._transformed.apply.decode(
            params, key, prev_output_tokens, source.encoder_out, source.src_mask, options, at
        )

    def source(
        self, params: Params, src_tokens: jax.Array, *, key: jax.Array | None = None
    ) -> EncoderOutput:
        """What the decoder attends to: `encode`'s output, or without an encoder nothing, for as
        many rows."""
        if "encoder" not in self.config.sides:
            return self._nothing(src_tokens)
        return self.encode(params, src_tokens, key=key)

    def _nothing(self, tokens: jax.Array) -> EncoderOutput:
        """For the rows of `tokens` an encoder's output of length 0."""
        rows = tokens.shape[0]
        empty = jnp.zeros((rows, 0, self.config.encoder_embed_dim), self.dtype)
        return EncoderOutput(empty, jnp.zeros((rows, 0), bool))

    def features(
        self,
        params: Params,
        src_tokens: jax.Array | None,
        prev_output_tokens: jax.Array | None,
        *,
        keys: Sequence[jax.Array | None] | jax.Array = (None, None),
        at: jax.Array | None = None,
        return_all_hiddens: bool = False,
        return_attention: bool = False,
    ) -> DecoderOutput:
        """What the output projection and heads read, whatever the flavour of the model.

        Args:
            src_tokens: int32 [B, S]; a decoder_only model reads none.
            prev_output_tokens: int32 [B, T]; an encoder_only model reads none, and T is S then.
            keys: of encoder and decoder, for dropout; None is evaluation.
            at: int32 [B]; features at one position of each row alone, as `decode`'s.
        """
        asked: dict[str, Any] = {
            "return_all_hiddens": return_all_hiddens,
            "return_attention": return_attention,
        }
        if "decoder" not in self.config.sides:
            assert src_tokens is not None
            found = self.encode(params, src_tokens, key=keys[0], **asked)
            features = found.encoder_out
            if at is not None:
                features = jnp.take_along_axis(features, at[:, None, None], axis=1)
            return DecoderOutput(features, found.hidden_states, found.attentions)
        assert prev_output_tokens is not None
        source = None
        if "encoder" in self.config.sides:
            assert src_tokens is not None
            source = self.encode(params, src_tokens, key=keys[0])
        return self.decode(params, prev_output_tokens, source, key=keys[1], at=at, **asked)

    def _by_layer(self, options: Options) -> bool:
        asked = options.return_all_hiddens or options.return_attention
        return (self.checkpoint_activations or self.stack_layers) and not asked

    def project(self, params: Params, features: jax.Array) -> jax.Array:
        """Logits float32 [..., V] of decoder features [..., D]."""
        return self._transformed.apply.project(params, None, features.astype(self.dtype))

    def for_steps(self, params: Params) -> Params:
        """The parameters as `step` takes them, for use in a loop: in the compute dtype.

        Where `bart_hk.kernels` do not serve, what multiplies the few rows of a step is stored
        transposed, [out, in]: a step computes `w.T @ x`, and XLA's CPU compiler would transpose at
        every step.
        """

        def convert(path: str, name: str, value: jax.Array) -> jax.Array:
            value = jnp.asarray(value)
            # Layer norms compute in float32. What is right already is not copied.
            if name not in ("scale", "offset") and value.dtype != self.dtype:
                value = value.astype(self.dtype)
            return value.T if self._is_transposed(path, name) else value

        return {
            path: {name: convert(path, name, value) for name, value in module.items()}
            for path, module in params.items()
            if not path.startswith(("encoder/", "source_encoder/", "bottleneck/"))
        }

    def _is_transposed(self, path: str, name: str) -> bool:
        multiplies = name == "w" and path.startswith(("decoder/layers_", "output_projection"))
        return multiplies and not kernels.serve(self.dtype)

    def start(self, params: Params, encoder_output: EncoderOutput, beam: int, length: int) -> Cache:
        """The cache for decoding `beam` hypotheses of at most `length` tokens for each source.

        Raises:
            ValueError: the model is encoder_only.
        """
        self.config.require("decoder", "decoding")
        source = encoder_output
        return self._transformed.apply.start(
            params, None, source.encoder_out, source.src_mask, beam, length
        )

    @staticmethod
    def extend(cache: Cache, beam: int, length: int) -> Cache:
        """`cache` with room for `length` steps of `beam` rows; what it holds stays."""
        return extend(cache, length, beam)

    def step(
        self,
        params: Params,
        tokens: jax.Array,
        position: jax.Array,
        cache: Cache,
        ancestors: jax.Array,
        *,
        return_features: bool = False,
    ) -> tuple[Any, ...]:
        """Decodes one token of every beam.

        Args:
            params: from `for_steps`.
            tokens: int32 [B, W], the token that each beam row chose last (at first the decoder
                start token).
            position: int32 scalar, how many tokens precede it.
            cache: from `start` or the step before.
            ancestors: bool [B, W, T, W]; True where slot (t, w') of the cache belongs to the
                history of beam row w, the present step included.
            return_features: also return what the output projection read.

        Returns:
            The logits float32 [V, B, W] after the present tokens (the vocabulary first, as they
            come out of a product with few rows), the cache with those tokens written, and their
            attention to the source, float32 [B, W, S]: the last layer's, averaged over heads. With
            `return_features`, also the last layer's features of those tokens, float32 [D, B, W].
        """
        params = {
            path: {n: x.T if self._is_transposed(path, n) else x for n, x in module.items()}
            for path, module in params.items()
        }
        found = self._transformed.apply.step(params, None, tokens, position, cache, ancestors)
        logits, cache, attention, features = found
        if return_features:
            return logits, cache, attention, features
        return logits, cache, attention


def run_once(
    config: BARTConfig, functions: _Functions, source: EncoderOutput, tokens: jax.Array
) -> None:
    """Calls everything that has parameters, in its order; traced by Haiku.

    Args:
        functions: of modules, not yet transformed.
        source: what is read where there is no encoder.
        tokens: int32 [B, T], source and target; T is at least the number of latent tokens.
    """
    options = Options()
    if "encoder" in config.sides:
        source = functions.encode(tokens, options)
    features, mask = source.encoder_out, source.src_mask
    if config.n_latent_tokens:
        features = functions.expand(functions.compress(features, mask).drawn)
        mask = jnp.ones(features.shape[:2], bool)
    if "decoder" in config.sides:
        features = functions.decode(tokens, features, mask, options).features
    functions.project(features)
