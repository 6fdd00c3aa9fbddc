"""What a network consists of, before a weight of it is in memory."""

import haiku as hk
import jax.numpy as jnp

from bart_hk.config import BARTConfig
from bart_hk.model.bart import BART, run_once

_COLUMNS = ("module", "owned_params", "input", "output", "params_size", "params_bytes")


def module_table(config: BARTConfig, batch: int = 1, length: int = 16) -> str:
    """Haiku's table of the modules that have parameters, in the order in which they run.

    One row for each call, with its parameters, its input and output and the number and bytes of
    its parameters (those of the modules in it included): so a table that source, target and output
    share is there for each of its uses. The shapes are those of `batch` sources and targets of
    `length` tokens. Only shapes are computed.
    """
    bart = BART(config)

    def run() -> None:
        _, functions = bart._build()
        longest = max(length, config.attended(length))
        tokens = jnp.full((batch, longest), config.eos_token_id, jnp.int32)
        run_once(config, functions, bart._nothing(tokens), tokens)

    table = hk.experimental.tabulate(
        run,
        columns=_COLUMNS,
        filters=("has_params",),
        tabulate_kwargs={"tablefmt": "simple"},
    )
    return table()
