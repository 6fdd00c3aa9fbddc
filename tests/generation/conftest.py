"""The small BARTs that fairseq trained (`tools/goldens/_search_models.py`)."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from bart_hk.checkpoint.fairseq import from_fairseq
from bart_hk.config import BARTConfig
from bart_hk.generation.generator import Generator
from bart_hk.model import BART

INPUTS = Path(__file__).parents[1] / "goldens" / "inputs"


@pytest.fixture(scope="session")
def trained(golden) -> Callable[[str], tuple[BARTConfig, dict[str, Any]]]:
    """`trained("post_norm")`: config and parameters."""

    @functools.cache
    def read(name: str) -> tuple[BARTConfig, dict[str, Any]]:
        case = golden("generation/cases.json")["models"][name]
        config = BARTConfig(**case["config"])
        return config, from_fairseq(load_file(INPUTS / case["weights"]), config)[0]

    return read


@pytest.fixture(scope="module")
def params(trained) -> dict[str, Any]:
    return trained("post_norm")[1]


@pytest.fixture(scope="module")
def generator(trained) -> Generator:
    """Of one module, which forgets its programs at the end."""
    return Generator(BART(trained("post_norm")[0]))
