"""A small model with GPT-2's vocabulary, away from its initialisation."""

import pytest

from bart_hk.config import BARTConfig
from bart_hk.hub import BARTHubInterface
from bart_hk.text import TextEncoder
from tests.parameters import random_params

CONFIG = BARTConfig(
    encoder_embed_dim=16,
    encoder_ffn_embed_dim=24,
    encoder_layers=1,
    encoder_attention_heads=2,
    decoder_ffn_embed_dim=24,
    decoder_layers=2,
    decoder_attention_heads=2,
    max_source_positions=64,
    max_target_positions=64,
)


@pytest.fixture(scope="session")
def tiny_params():
    return random_params(CONFIG, 0.16)


@pytest.fixture(scope="session")
def text():
    return TextEncoder.gpt2()


@pytest.fixture(scope="session")
def shared(tiny_params, text):
    """A hub that tests may ask, but must leave as it is."""
    return BARTHubInterface(CONFIG, tiny_params, text, max_tokens=256)


@pytest.fixture
def bart(tiny_params, text):
    """A hub of a test's own."""
    return BARTHubInterface(CONFIG, tiny_params, text, max_tokens=256)
