"""Which parameters learn how fast: freezing, rates by layer, rates of heads. Off by default.

Names are paths in the tree that is trained, joined by slashes: `model/embed_tokens/embeddings`,
`model/encoder/layers_0/self_attn/q_proj/w`, `head/out_proj/w`.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

_BODY = "model"  # first part of the names of everything but heads


@dataclass
class TuningConfig:
    """Every parameter learns at the same rate, unless something here says otherwise."""

    # Regular expressions; a parameter whose name one of them is found in stays what it is.
    freeze: list[str] = dataclasses.field(default_factory=list)
    # Times this for every layer between a parameter and the heads, embeddings last (Howard and
    # Ruder 2018; Clark et al. 2020 took 0.8 to 0.9). Decoder layers stand above encoder layers.
    layer_lr_decay: float = 1.0
    head_lr: float | None = None  # of heads, new or restored, in place of optimization.lr


def check(config: TuningConfig, lr: float) -> None:
    """
    Raises:
        ValueError: a value makes no sense.
    """
    for pattern in config.freeze:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"tuning.freeze: {pattern!r} is no regular expression: {error}"
            ) from None
    if not 0 < config.layer_lr_decay <= 1:
        raise ValueError(f"tuning.layer_lr_decay={config.layer_lr_decay} must be in (0, 1]")
    if config.head_lr is not None and not (config.head_lr >= 0 and lr > 0):
        raise ValueError(
            f"tuning.head_lr={config.head_lr} must not be negative, and optimization.lr={lr} must "
            "be above 0 then"
        )


# In the order in which a text passes them, and what comes after the last layer of each.
_STACKS = ("source_encoder", "encoder", "decoder")
_AFTER = {
    "source_encoder": ("/source_encoder/layer_norm/",),
    "encoder": ("/encoder/layer_norm/", "/bottleneck/"),
    "decoder": ("/decoder/layer_norm/", "/output_projection", "/final_logits"),
}


def frozen(config: TuningConfig, params: Any) -> Any:
    """Whether each parameter stays what it is: the tree with booleans.

    Raises:
        ValueError: a pattern is found in no name, or in all of them.
    """
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in config.freeze:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(
                f"tuning.freeze: {pattern!r} is found in no parameter's name; they are like "
                f"{names[0]}, {names[-1]}"
            )
    found = _map(lambda name: any(re.search(p, name) for p in config.freeze), params)
    if config.freeze and all(jax.tree.leaves(found)):
        raise ValueError("tuning.freeze: nothing is left to learn")
    return found


def rates(config: TuningConfig, params: Any, lr: float) -> Any:
    """What each parameter's rate is of the schedule's: the tree with floats, 0 where it is frozen.

    Raises:
        ValueError: as `frozen`; or there is no head for `head_lr`.
    """
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if config.head_lr is not None and all(name.startswith(f"{_BODY}/") for name in names):
        raise ValueError(f"tuning.head_lr={config.head_lr}: this task has no head")
    layers = {side: _count(names, side) for side in _STACKS}
    top = sum(layers.values()) + 1  # heads

    def rate(name: str) -> float:
        if not name.startswith(f"{_BODY}/"):
            return 1.0 if config.head_lr is None else config.head_lr / lr
        return config.layer_lr_decay ** (top - _depth(name, layers))

    stays = frozen(config, params)
    return jax.tree.map(lambda factor, still: 0.0 if still else factor, _map(rate, params), stays)


def tuned(
    config: TuningConfig, optimizer: optax.GradientTransformation, params: Any, lr: float
) -> optax.GradientTransformation:
    """The optimizer with these rates; the same one, and the same state, where nothing is asked."""
    if config == TuningConfig():
        return optimizer
    factors = rates(config, params, lr)

    def update(grads: Any, state: Any, params: Any = None) -> Any:
        changes, state = optimizer.update(grads, state, params)
        return jax.tree.map(lambda change, factor: change * factor, changes, factors), state

    return optax.GradientTransformation(optimizer.init, update)


def without_frozen(
    config: TuningConfig, loss: Callable[..., Any], params: Any
) -> Callable[..., Any]:
    """The loss, of which frozen parameters have no gradient, so that none is computed and the norm
    is that of what learns."""
    if not config.freeze:
        return loss
    stays = frozen(config, params)

    def stopped(params: Any, *rest: Any) -> Any:
        held = jax.tree.map(
            lambda array, still: jax.lax.stop_gradient(array) if still else array, params, stays
        )
        return loss(held, *rest)

    return stopped


def _depth(name: str, layers: dict[str, int]) -> int:
    """0 for embeddings, then the layers of an encoder in front, the encoder's, the decoder's."""
    below = 0
    for side, count in layers.items():
        if found := re.search(rf"/{side}/layers_(\d+)/", name):
            return below + int(found[1]) + 1
        below += count
        if any(part in name for part in _AFTER[side]):
            return below
    return 0


def _count(names: list[str], side: str) -> int:
    found = [re.search(rf"/{side}/layers_(\d+)/", name) for name in names]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _map(function: Callable[[str], Any], params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: function(_name(path)), params)


def _name(path: Any) -> str:
    return "/".join(str(part.key) for part in path)
