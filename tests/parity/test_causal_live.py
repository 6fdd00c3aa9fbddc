"""A decoder alone beside transformers' BartForCausalLM, which is one, computed now."""

import json

import numpy as np
from safetensors.numpy import load_file

from bart_hk.checkpoint.huggingface import write_model
from bart_hk.config import BARTConfig
from bart_hk.model import BART
from tests.parameters import random_params


def test_transformers_causal_model_is_ours(oracle, tmp_path):
    config = BARTConfig(
        flavour="decoder_only",
        vocab_size=60,
        encoder_embed_dim=16,
        decoder_ffn_embed_dim=20,
        decoder_layers=3,
        decoder_attention_heads=2,
        encoder_attention_heads=2,
        max_source_positions=14,
        max_target_positions=14,
    )
    params = random_params(config)
    tokens = np.random.default_rng(0).integers(4, 60, (3, 14)).astype(np.int32)
    write_model(tmp_path / "model", config, params)
    (tmp_path / "ids.json").write_text(json.dumps(tokens.tolist()))
    oracle("oracle_causal.py", tmp_path)
    missing, unexpected = json.loads((tmp_path / "said.json").read_text())
    # It has an attention to a source that it never computes.
    assert missing and all(".encoder_attn" in name for name in missing)
    assert unexpected == ["final_logits_bias"]
    bart = BART(config)
    logits = bart.project(params, bart.decode(params, tokens).features)
    theirs = load_file(tmp_path / "logits.safetensors")["logits"]
    assert theirs.std() > 0.5
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=1e-5)
