"""A tokenizer of eight words and a model that reads it, for the tests of tasks."""

from bart_hk.config import BARTConfig
from bart_hk.text import train_bpe

ENCODER = train_bpe(["aa bb cc dd ee ff gg hh"], 300)
MODEL = BARTConfig(
    vocab_size=len(ENCODER.dictionary),
    encoder_embed_dim=8,
    encoder_ffn_embed_dim=8,
    decoder_ffn_embed_dim=8,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    max_source_positions=20,
    max_target_positions=20,
)
