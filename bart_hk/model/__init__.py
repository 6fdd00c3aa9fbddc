"""The network: pure functions over one parameter tree. Haiku lives here and nowhere else."""

from bart_hk.model.bart import BART, Params
from bart_hk.model.ensemble import Ensemble
from bart_hk.model.heads import (
    ClassificationHead,
    head_logits,
    sentence_ends,
    sentence_representation,
)
from bart_hk.model.transformer import Cache, DecoderOutput, EncoderOutput, Latents

__all__ = [
    "BART",
    "Cache",
    "ClassificationHead",
    "DecoderOutput",
    "EncoderOutput",
    "Ensemble",
    "Latents",
    "Params",
    "head_logits",
    "sentence_ends",
    "sentence_representation",
]
