"""The Python of README.md runs as it stands, from its first block to its last, on small models.

The training loop, which wants batches, has a test of its own in `test_notes.py`."""

import numpy as np

from bart_hk.config import BARTConfig
from bart_hk.hub import BARTHubInterface
from bart_hk.text import train_bpe
from tests.docs.test_notes import README, snippets
from tests.parameters import random_params

SIZES = {
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_ffn_embed_dim": 24,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "max_source_positions": 64,
    "max_target_positions": 64,
}


def test_the_blocks_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = train_bpe(README.splitlines(), 600)
    config = BARTConfig(vocab_size=len(text.dictionary), **SIZES)
    bart = BARTHubInterface(config, random_params(config, 0.16), text)
    labels = ["contradiction", "neutral", "entailment"]
    bart.register_classification_head("mnli", labels=labels)
    bart.save("bart.base")  # a folder wins over the published model of its name
    (tmp_path / "bart.large.mnli").symlink_to("bart.base")
    blocks = [block for block in snippets(README) if "for batch in batches:" not in block]
    assert len(blocks) == 4
    names = {"articles": ["An article.", "Another one."]}
    for number, block in enumerate(blocks):
        exec(compile(block, f"README.md: block {number}", "exec"), names)
    assert capsys.readouterr().out  # of the stream
    assert (tmp_path / "ELSEWHERE" / "config.json").exists()
    assert np.shape(names["latents"]) == (2, 4, 32)
