"""What every reader of a model's files gives and every writer takes."""

import dataclasses
from typing import Any

import numpy as np

from bart_hk.checkpoint.tree import Params
from bart_hk.config import BARTConfig


@dataclasses.dataclass
class HeadFiles:
    """A classification head as it is stored."""

    params: Params  # {"dense": {"w" [D, inner], "b"}, "out_proj": {"w" [inner, C], "b"}}
    labels: list[str] | None = None  # names of the C classes
    regression: bool = False
    multi_label: bool = False  # every class is a question of its own

    @property
    def inner_dim(self) -> int:
        return int(np.shape(self.params["dense"]["w"])[1])

    @property
    def num_classes(self) -> int:
        return int(np.shape(self.params["out_proj"]["w"])[1])


@dataclasses.dataclass
class ModelFiles:
    """What the files of a model hold, the tokenizer's apart."""

    config: BARTConfig
    params: Params  # as `tree.parameter_shapes(config)`, on the host
    heads: dict[str, HeadFiles] = dataclasses.field(default_factory=dict)
    extras: dict[str, Any] = dataclasses.field(default_factory=dict)  # the rest of bart_hk.json
