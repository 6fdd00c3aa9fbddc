"""What a batch costs, and how much of the device it uses.

Model FLOPs utilisation (Chowdhery et al. 2022, appendix B) is the arithmetic that the model needs
for the real tokens of a batch, per second, over what the device can do. Padding, recomputed layers
and everything that is not a matrix product count nothing, so they show as a lower share.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bart_hk.config import BARTConfig

# FLOP/s of dense bfloat16 products, from the makers' data sheets, by a part of the device's name.
_KNOWN = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def training_flops(
    config: BARTConfig,
    source: np.ndarray,
    target: np.ndarray,
    predicted: np.ndarray | None = None,
) -> int:
    """FLOPs of one pass forward and back over rows of these lengths.

    Forward: twice the weights of every matrix that a token meets, and in attention 4 H K for every
    pair of query and key; a causal pair that is masked is computed by nobody who can help it, so
    half of them count. Back: twice as much again.

    Args:
        source, target: int [B], real tokens of each row; of a stack that there is.
        predicted: int [B], how many of them have logits; by default all of the last stack.
    """
    width, rows = config.encoder_embed_dim, config.vocab_size
    encoder_heads, decoder_heads = map(config.attention_dim, ("encoder", "decoder"))
    source, target = (np.asarray(n, np.float64) for n in (source, target))
    has_encoder, has_decoder = (side in config.sides for side in ("encoder", "decoder"))
    source, target = source * has_encoder, target * has_decoder
    encoder = 4 * width * encoder_heads + 2 * width * config.encoder_ffn_embed_dim
    decoder = (
        4 + 2 * has_encoder
    ) * width * decoder_heads + 2 * width * config.decoder_ffn_embed_dim
    cross = 2 * width * decoder_heads * has_decoder  # keys and values of what is attended to
    read, size = source, config.n_latent_tokens * config.latent_token_size
    if config.n_latent_tokens:
        read = np.where(source > 0, float(config.n_latent_tokens), 0.0)
    encoder_layers = config.encoder_layers + config.source_encoder_layers
    weights = encoder_layers * encoder * source.sum()
    weights += config.decoder_layers * (decoder * target.sum() + cross * read.sum())
    weights += 2 * width * size * (source > 0).sum()
    if predicted is None:
        predicted = target if has_decoder else source
    weights += width * rows * float(predicted.sum())
    pairs = encoder_heads * encoder_layers * (source**2).sum()
    pairs += decoder_heads * config.decoder_layers * ((target**2).sum() / 2 + (read * target).sum())
    return int(3 * (2 * weights + 4 * pairs))


def batch_costs(config: BARTConfig, batches: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Sums over an update's batches: `flops`, both sides' `positions`, and `padding` among them."""
    flops, positions, real = 0, 0, 0
    for batch in batches:
        # What is not there was left out, as the model has no stack that would read it.
        names = [name for name in ("src_tokens", "prev_output_tokens") if name in batch]
        sides = [batch[name] for name in names]
        lengths = [(side != config.pad_token_id).sum(axis=1) for side in sides]
        predicted = np.zeros_like(lengths[0])  # a head's logits are few
        if "target" in batch:
            predicted = (batch["target"] != config.pad_token_id).sum(axis=1)
        flops += training_flops(config, lengths[0], lengths[-1], predicted)
        positions += sum(side.size for side in sides)
        real += int(sum(n.sum() for n in lengths))
    return {
        "flops": float(flops),
        "positions": float(positions),
        "padding": float(positions - real),
    }


@functools.cache
def peak_flops(dtype: Any) -> float:
    """FLOP/s that products in `dtype` reach here: the maker's number, or the best of five."""
    device = jax.devices()[0]
    if dtype == jnp.bfloat16:
        for part, value in _KNOWN.items():
            if part in device.device_kind:
                return value
    size = 1024 if device.platform == "cpu" else 8192
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / min(seconds)
