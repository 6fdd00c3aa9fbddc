"""A bottleneck between encoder and decoder: the Transformer-VAE on BART's own layers.

    states [B, S, D] -> pooled -> linear -> tanh or identity -> latents [B, n, Z]
    latents -> linear, a vector for each place, layer norm -> [B, n, D], which the decoder reads

Source: Fraser Greenlee's transformer-vae and t5-vae-flax (2021). The vectors for the places are not
theirs: cross-attention would not know which of the latent tokens is which. They begin at zero,
where everything is as it is there. A latent token for which the source has no position, as it is
shorter, takes the state of padding: it reads the whole source, and is the same however far a row is
padded. So no latent is ever missing.

Shapes: see the glossary in `bart_hk.model.layers`; n latent tokens of Z numbers.
"""

import haiku as hk
import jax
import jax.numpy as jnp

from bart_hk.config import BARTConfig, LatentActivation, LatentPooling
from bart_hk.model.layers import Parameter, layer_norm, linear
from bart_hk.model.transformer import Latents


class Bottleneck(hk.Module):
    """Encoder states to latents, and latents to what the decoder reads."""

    def __init__(self, config: BARTConfig, name: str) -> None:
        super().__init__(name=name)
        self.config = config

    @hk.name_like("__call__")
    def compress(self, encoder_out: jax.Array, src_mask: jax.Array) -> Latents:
        """Of states [B, S, D] and their mask, bool [B, S]; S is at least n where the first n count.

        With variances, and a key (training), the result is drawn, else it is the mean.
        """
        config = self.config
        pooled = encoder_out[:, : config.n_latent_tokens]
        if config.latent_pooling == LatentPooling.mean:
            weights = src_mask.astype(jnp.float32)[..., None]
            total = jnp.sum(encoder_out.astype(jnp.float32) * weights, axis=1)
            mean_state = total / jnp.maximum(weights.sum(axis=1), 1.0)
            pooled = mean_state.astype(encoder_out.dtype)
        mean = self._numbers(pooled, "to_latent")
        if config.latent_activation == LatentActivation.tanh:
            mean = jnp.tanh(mean)
        if not config.latent_variational:
            return Latents(mean, None, mean)
        log_variance = self._numbers(pooled, "to_log_variance")
        drawn, key = mean, hk.maybe_next_rng_key()
        if key is not None:
            noise = jax.random.normal(key, mean.shape, jnp.float32)
            drawn = mean + jnp.exp(log_variance / 2) * noise
        return Latents(mean, log_variance, drawn)

    @hk.transparent
    def _numbers(self, pooled: jax.Array, name: str) -> jax.Array:
        """float32 [B, n, Z] of [B, n, D] or [B, D]."""
        config = self.config
        size = config.latent_token_size
        if pooled.ndim == 3:
            return linear(pooled, size, name).astype(jnp.float32)
        found = linear(pooled, config.n_latent_tokens * size, name).astype(jnp.float32)
        return found.reshape(-1, config.n_latent_tokens, size)

    @hk.name_like("__call__")
    def expand(self, latents: jax.Array) -> jax.Array:
        """What the decoder attends to, [B, n, D] in the compute dtype, of float [B, n, Z]."""
        config = self.config
        shape = (config.n_latent_tokens, config.encoder_embed_dim)
        places = Parameter("embed_positions", "embeddings", shape, jnp.zeros)()
        x = linear(latents.astype(places.dtype), config.encoder_embed_dim, "from_latent")
        return layer_norm(x + places, "layer_norm")
