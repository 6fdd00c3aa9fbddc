"""BART, the sequence-to-sequence denoising transformer, in JAX and Haiku.

    import bart_hk
    bart = bart_hk.load("directory")

The public names are imported on first use, so that `import bart_hk` and the parts that need no jax
stay light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bart_hk.config import ARCHITECTURES as ARCHITECTURES
    from bart_hk.config import BARTConfig as BARTConfig
    from bart_hk.config import architecture as architecture
    from bart_hk.hub import BARTHubInterface as BARTHubInterface
    from bart_hk.hub import BARTModel as BARTModel
    from bart_hk.hub import collate_tokens as collate_tokens
    from bart_hk.hub import load as load
    from bart_hk.training.loop import train as train

__version__ = "0.1.0"

_HOMES = {
    "ARCHITECTURES": "bart_hk.config",
    "BARTConfig": "bart_hk.config",
    "BARTHubInterface": "bart_hk.hub",
    "BARTModel": "bart_hk.hub",
    "architecture": "bart_hk.config",
    "collate_tokens": "bart_hk.hub",
    "load": "bart_hk.hub",
    "train": "bart_hk.training.loop",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bart_hk' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
