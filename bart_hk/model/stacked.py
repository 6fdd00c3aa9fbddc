"""`BART.encode` and `decode` layer by layer, for training: recomputed, or compiled once per side.

The layers of `bart_hk.model.transformer` are run from outside here, each on parameters that are
handed to it. So `checkpoint_activations` can wrap them in `jax.checkpoint` (memory for a third more
arithmetic), and `stack_layers` can compile one of them and run it by `jax.lax.scan` over the
layers' parameters, stacked on the fly. The parameter tree stays as it is: during a step there is a
second copy of the layers. Decoding never does this, for there the copying would cost more than the
step itself.

What it is worth, for the loss and gradient of bart_large (2 x 64 ids, float32, jax 0.10.2, two
cores): compiled in 8.8 s plain, 6.9 s stacked, 5.7 s stacked and recomputed, 17.6 s recomputed
alone; but stacking took 2.7 GiB for its copies of parameters and gradients. So neither is on unless
asked for.

Shapes: see the glossary in `bart_hk.model.layers`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from bart_hk.config import BARTConfig
from bart_hk.model.transformer import DecoderOutput, EncoderOutput

Tree = Mapping[str, Mapping[str, jax.Array]]
# A layer of (its parameters, with `layers_0` in every path; its key or None; x; what it reads).
Layer = Callable[..., jax.Array]


class Network(Protocol):
    """What is asked of a `BART` here."""

    @property
    def config(self) -> BARTConfig: ...

    @property
    def checkpoint_activations(self) -> bool: ...

    @property
    def stack_layers(self) -> bool: ...


def encode(
    bart: Network, functions: Any, params: Tree, key: jax.Array | None, src_tokens: jax.Array
) -> EncoderOutput:
    """As `BART.encode`; `functions` are the network's."""
    training, keys = key is not None, _split(key)

    def layer(own: Tree, key: jax.Array | None, x: jax.Array, mask: jax.Array) -> jax.Array:
        return functions.encoder_layer(own, key, x, mask, training, 0)[0]

    x, mask = functions.embed_source(params, keys[0], src_tokens, training)
    layers = _of_layers(params, "encoder", bart.config.encoder_layers)
    x = _run(bart, layer, layers, keys[1], x, (mask,))
    return EncoderOutput(functions.finish_source(params, None, x), mask)


def decode(
    bart: Network,
    functions: Any,
    params: Tree,
    key: jax.Array | None,
    prev_output_tokens: jax.Array,
    source: EncoderOutput,
    at: jax.Array | None,
) -> DecoderOutput:
    """As `BART.decode`; the last layer stands alone where it computes one position of each row."""
    training, keys = key is not None, _split(key)

    def layer(own: Tree, key: jax.Array | None, x: jax.Array, *read: Any) -> jax.Array:
        encoder_out, mask, *position = read
        return functions.decoder_layer(own, key, x, encoder_out, mask, training, 0, *position)[0]

    x = functions.embed_target(params, keys[0], prev_output_tokens, training)
    layers = _of_layers(params, "decoder", bart.config.decoder_layers)
    read = (source.encoder_out, source.src_mask)
    if at is None:
        x = _run(bart, layer, layers, keys[1], x, read)
    else:
        x = _run(bart, layer, layers[:-1], keys[1], x, read)
        x = _run(bart, layer, layers[-1:], keys[2], x, (*read, at))
    return DecoderOutput(functions.finish_target(params, None, x))


def _run(
    bart: Network,
    layer: Layer,
    layers: Sequence[Tree],
    key: jax.Array | None,
    x: jax.Array,
    read: tuple[Any, ...],
) -> jax.Array:
    """`x` through layers of these parameters; stacked or not, dropout takes the same."""
    if bart.checkpoint_activations:
        layer = jax.checkpoint(layer)
    keys = None if key is None else jax.random.split(key, len(layers))
    if not bart.stack_layers or len(layers) < 2:
        for i, own in enumerate(layers):
            x = layer(own, None if keys is None else keys[i], x, *read)
        return x

    def body(x: jax.Array, given: tuple[Tree, jax.Array | None]) -> tuple[jax.Array, None]:
        return layer(*given, x, *read), None

    whole = jax.tree.map(lambda *arrays: jnp.stack(arrays), *layers)
    return jax.lax.scan(body, x, (whole, keys))[0]


def _split(key: jax.Array | None) -> Any:
    return (None, None, None) if key is None else jax.random.split(key, 3)


def _of_layers(params: Tree, side: str, count: int) -> list[Tree]:
    """Each layer's parameters, under the paths of layer 0."""
    first = f"{side}/layers_0/"
    found: list[Tree] = []
    for number in range(count):
        prefix = f"{side}/layers_{number}/"
        own = {p: values for p, values in params.items() if p.startswith(prefix)}
        found.append({first + path.removeprefix(prefix): own[path] for path in own})
    return found
