"""Small models with random weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.checkpoint.tree import Params, parameter_shapes
from bart_hk.config import BARTConfig


@pytest.fixture
def small() -> Callable[..., BARTConfig]:
    """A config that is small and differs between encoder and decoder; arguments replace fields."""

    def make(**changes: Any) -> BARTConfig:
        fields = {
            "vocab_size": 60,
            "encoder_embed_dim": 16,
            "encoder_ffn_embed_dim": 24,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_ffn_embed_dim": 20,
            "decoder_layers": 1,
            "decoder_attention_heads": 2,
            "max_source_positions": 14,
            "max_target_positions": 14,
        }
        return BARTConfig(**{**fields, **changes})

    return make


@pytest.fixture
def random_params() -> Callable[..., Params]:
    def make(config: BARTConfig, dtype: Any = np.float32, seed: int = 0) -> Params:
        rng = np.random.default_rng(seed)
        return {
            path: {name: rng.standard_normal(shape).astype(dtype) for name, shape in leaves.items()}
            for path, leaves in parameter_shapes(config).items()
        }

    return make


@pytest.fixture
def random_head() -> Callable[..., HeadFiles]:
    def make(width: int = 16, inner: int = 16, classes: int = 3, **about: Any) -> HeadFiles:
        rng = np.random.default_rng(classes)

        def linear(inputs: int, outputs: int) -> dict[str, np.ndarray]:
            w = rng.standard_normal((inputs, outputs), np.float32)
            return {"w": w, "b": rng.standard_normal(outputs, np.float32)}

        params = {"dense": linear(width, inner), "out_proj": linear(inner, classes)}
        return HeadFiles(params, **about)

    return make


@pytest.fixture
def assert_equal() -> Callable[[Any, Any], None]:
    """Two parameter trees are the same bit for bit, dtypes included."""

    def check(ours: Any, expected: Any) -> None:
        assert ours.keys() == expected.keys()
        for path, leaves in expected.items():
            assert ours[path].keys() == leaves.keys()
            for name, array in leaves.items():
                found = np.asarray(ours[path][name])
                assert (found.dtype, found.shape) == (array.dtype, array.shape), (path, name)
                assert found.tobytes() == array.tobytes(), (path, name)

    return check
