"""Parameters for tests, without waiting for an initialisation to compile."""

import numpy as np

from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import BARTConfig


def random_params(
    config: BARTConfig, scale: float = 0.3, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Every parameter ~ N(0, scale), layer norms' scales around 1: so that each of them matters."""
    rng = np.random.default_rng(seed)
    return {
        path: {
            name: rng.standard_normal(shape, np.float32) * np.float32(scale) + (name == "scale")
            for name, shape in leaves.items()
        }
        for path, leaves in parameter_shapes(config).items()
    }
