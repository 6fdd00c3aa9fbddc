"""The real fairseq's and transformers' BARTs, from the fields of a BARTConfig.

Runs in the oracle's interpreter, which has no jax and so no bart_hk: configs come as dictionaries.
"""

from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import torch
from fairseq.data import Dictionary
from fairseq.models.bart import BARTModel
from fairseq.models.bart.model import bart_large_architecture
from torch.nn import functional as F


def fairseq_dictionary(vocab_size: int) -> Dictionary:
    """A dictionary of `vocab_size` symbols, fairseq's four specials first."""
    dictionary = Dictionary()
    for i in range(vocab_size - len(dictionary)):
        dictionary.add_symbol(f"s{i}")
    return dictionary


def fairseq_bart(fields: dict[str, Any]) -> BARTModel:
    """fairseq's BARTModel with BARTConfig's `fields` (their names are fairseq's), in eval mode."""
    args = Namespace(**fields)
    args.decoder_embed_dim = args.encoder_embed_dim
    args.task = "denoising"  # loading a state asks for it
    dictionary = fairseq_dictionary(args.__dict__.pop("vocab_size"))
    bart_large_architecture(args)  # fills in what is not given
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    return BARTModel.build_model(args, task).eval()


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter values that matter, biases and layer norms too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        is_scale = "norm" in name and name.endswith("weight")
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = float(is_scale) + 0.3 * noise


def cross_entropy(logits: torch.Tensor, target: torch.Tensor, pad: int) -> torch.Tensor:
    """The sum over real tokens of -log p(target)."""
    return F.cross_entropy(
        logits.flatten(0, 1), target.flatten(), ignore_index=pad, reduction="sum"
    )
