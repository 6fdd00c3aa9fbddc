"""Text to ids and back: byte-level BPE, SentencePiece, fairseq's dictionaries. No jax here."""

from bart_hk.text.dictionary import Dictionary
from bart_hk.text.encoder import TextEncoder
from bart_hk.text.gpt2_bpe import GPT2BPE
from bart_hk.text.sentencepiece import SentencePieceBPE
from bart_hk.text.vocabulary import train_bpe, train_characters, train_sentencepiece

__all__ = [
    "Dictionary",
    "GPT2BPE",
    "SentencePieceBPE",
    "TextEncoder",
    "train_bpe",
    "train_characters",
    "train_sentencepiece",
]
