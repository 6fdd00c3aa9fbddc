"""The network: pure functions over one parameter tree. Haiku lives here and nowhere else."""

from bart_hk.model.bart import BART, Params
from bart_hk.model.heads import ClassificationHead, sentence_representation
from bart_hk.model.transformer import Cache, DecoderOutput, EncoderOutput, extend

__all__ = [
    "BART",
    "Cache",
    "ClassificationHead",
    "DecoderOutput",
    "EncoderOutput",
    "Params",
    "extend",
    "sentence_representation",
]
