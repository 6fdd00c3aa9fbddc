"""What a search cannot do without: the bytes that its steps read, and those that it holds.

Computed from shapes alone. A step reads every weight of the decoder once, whatever the number of
rows (not the projections of the source's keys and values, which are computed before the first step,
nor the tables of positions, of which it reads a row each), the keys and values of the sources, and
those that the steps before it left.

Shapes: B batch, W beams, S source length, T steps, D width, V vocabulary.
"""

import math
import threading
import time

import numpy as np

from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import BARTConfig

_ONCE_PER_SOURCE = ("encoder_attn/k_proj", "encoder_attn/v_proj")


def weight_bytes(config: BARTConfig, size: int = 4) -> int:
    """Of all parameters, `size` bytes each."""
    return sum(
        size * math.prod(shape)
        for leaves in parameter_shapes(config).values()
        for shape in leaves.values()
    )


def read_weights(config: BARTConfig, size: int = 4) -> int:
    """Bytes of weights that one step of a search reads, `size` bytes each."""
    total = config.vocab_size * config.encoder_embed_dim  # the output projection, tied or not
    for path, leaves in parameter_shapes(config).items():
        once = path.endswith(_ONCE_PER_SOURCE)
        if path.startswith("decoder/layers_") and not once:
            total += sum(math.prod(shape) for shape in leaves.values())
    return size * total


def cross_cache(config: BARTConfig, batch: int, source: int, size: int = 4) -> int:
    """Bytes of the sources' keys and values."""
    return 2 * size * config.decoder_layers * batch * source * config.encoder_embed_dim


def self_cache(config: BARTConfig, batch: int, beam: int, steps: int, size: int = 4) -> int:
    """Bytes of the keys and values that `steps` steps leave."""
    return 2 * size * config.decoder_layers * batch * beam * steps * config.encoder_embed_dim


def read_in_search(
    config: BARTConfig, batch: int, beam: int, source: int, steps: int, size: int = 4
) -> int:
    """Bytes that the first `steps` steps of a search read."""
    each = read_weights(config, size) + cross_cache(config, batch, source, size)
    written = sum(self_cache(config, batch, beam, step, size) for step in range(1, steps + 1))
    return steps * each + written


def held_in_search(
    config: BARTConfig, batch: int, beam: int, source: int, room: int, size: int = 4
) -> int:
    """Bytes of weights and caches of a search with room for `room` steps."""
    caches = cross_cache(config, batch, source, size) + self_cache(config, batch, beam, room, size)
    return weight_bytes(config, size) + caches


def bandwidth(threads: int, size: int = 1 << 29, rounds: int = 7) -> float:
    """Bytes per second at which this many threads read memory: the best of some rounds."""
    parts = np.array_split(np.ones(size // 8), threads)

    def once() -> float:
        readers = [threading.Thread(target=np.max, args=(part,)) for part in parts]
        start = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return time.perf_counter() - start

    return size / min(once() for _ in range(rounds))
