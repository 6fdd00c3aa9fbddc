"""A BART's forward pass as one expression: `python tools/one_expression.py bart.base "A text"`.

`FORWARD(params, source, previous)` gives the logits float32 [B, T, V] of int ids [B, S] and [B, T],
padded on the right, from parameters under our names. It is bart-base's: tied, with a layer norm
after each sublayer, exact GELU, pad 1, positions from row 2 and heads of width 64; how many layers
and heads there are follows from the parameters. It is here to be read, and to be sure that a BART
is nothing else; the model itself is `bart_hk/model`.

Shapes: B batch, S and T lengths of source and target, D width, H heads, K width of a head.
"""

import argparse
import sys
from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np

FORWARD: Callable[..., jax.Array] = jax.jit(
    lambda params, source, previous, pad=1, first=2, width=64: (
        # [..., in] -> [..., out], and [..., D] -> [..., D]
        linear := lambda x, name: x @ params[name]["w"] + params[name]["b"],
        norm := lambda x, name: (
            (x - x.mean(-1, keepdims=True))
            / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
            * params[name]["scale"]
            + params[name]["offset"]
        ),
        # [B, T, D] -> [B, T, H, K]
        heads := lambda x, name: linear(x, name).reshape(*x.shape[:2], -1, width),
        # queries from [B, T, D], keys and values from [B, S, D] -> [B, T, D]
        attend := lambda x, y, mask, name: linear(
            jnp.einsum(
                "bhts,bshk->bthk",
                jax.nn.softmax(
                    jnp.where(
                        mask,
                        jnp.einsum(
                            "bthk,bshk->bhts",
                            heads(x, f"{name}/q_proj"),
                            heads(y, f"{name}/k_proj"),
                        )
                        / width**0.5,
                        -1e30,
                    )
                ),
                heads(y, f"{name}/v_proj"),
            ).reshape(x.shape),
            f"{name}/out_proj",
        ),
        gelu := lambda x: x * (1 + jax.lax.erf(x / 2**0.5)) / 2,
        # each a sublayer with its residual connection and, after the sum, its layer norm
        self_attention := lambda x, mask, name: norm(
            x + attend(x, x, mask, f"{name}/self_attn"), f"{name}/self_attn_layer_norm"
        ),
        cross_attention := lambda x, y, mask, name: norm(
            x + attend(x, y, mask, f"{name}/encoder_attn"), f"{name}/encoder_attn_layer_norm"
        ),
        feed_forward := lambda x, name: norm(
            x + linear(gelu(linear(x, f"{name}/fc1")), f"{name}/fc2"), f"{name}/final_layer_norm"
        ),
        embed := lambda tokens, positions, side: norm(
            params["embed_tokens"]["embeddings"][tokens]
            + params[f"{side}/embed_positions"]["embeddings"][first + positions],
            f"{side}/layernorm_embedding",
        ),
        layers := lambda side: [
            f"{side}/layers_{i}"
            for i in range(
                sum(name.startswith(f"{side}/") and name.endswith("/fc1") for name in params)
            )
        ],
        real := source != pad,
        mask := real[:, None, None],
        encoded := reduce(
            lambda x, name: feed_forward(self_attention(x, mask, name), name),
            layers("encoder"),
            embed(source, jnp.maximum(jnp.cumsum(real, 1) - 1, 0), "encoder") * real[..., None],
        ),
        causal := jnp.tri(previous.shape[1], dtype=bool),
        reduce(
            lambda x, name: feed_forward(
                cross_attention(self_attention(x, causal, name), encoded, mask, name), name
            ),
            layers("decoder"),
            embed(previous, jnp.arange(previous.shape[1]), "decoder"),
        )
        @ params["embed_tokens"]["embeddings"].T,
    )[-1],
    static_argnames=("pad", "first", "width"),
)


def main(argv: list[str] | None = None) -> int:
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(description=summary.partition(":")[0], epilog=rest)
    parser.add_argument("model", help="what bart_hk.load takes, such as bart.base")
    parser.add_argument("text", help="source, and what the decoder reads")
    args = parser.parse_args(argv)
    import bart_hk

    try:
        bart = bart_hk.load(args.model)
    except (OSError, ValueError) as error:
        print(f"one_expression: {error}", file=sys.stderr)
        return 2
    source = jnp.asarray(bart.encode(args.text))[None]
    previous = jnp.roll(source, 1, axis=1)
    found = np.asarray(FORWARD(bart.params, source, previous))
    encoded = bart.model.encode(bart.params, source)
    features = bart.model.decode(bart.params, previous, encoded).features
    expected = np.asarray(bart.model.project(bart.params, features))
    print(bart.decode(found[0].argmax(-1).astype(np.int32)))
    print(f"greatest difference from the model's logits: {np.abs(found - expected).max():.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
