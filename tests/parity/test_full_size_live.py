"""BARTs of full size that transformers wrote, in each of its file formats, loaded as users do.

What the real fairseq wrote is in `test_checkpoints_live.py`."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import bart_hk
from bart_hk.config import architecture
from bart_hk.model import BART, Params
from bart_hk.text import TextEncoder
from tests.parity.test_model_live import random_ids

FORMS = {
    "safe": {},
    "sharded": {"max_shard_size": "200MB"},
    "torch": {"safe_serialization": False},
}


def logits(model: BART, params: Params, source: np.ndarray, previous: np.ndarray) -> jax.Array:
    features = model.decode(params, previous, model.encode(params, source)).features
    return model.project(params, features)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "vocabulary"),
    [("bart_base", 50265), ("bart_base", 51201), ("bart_large", 50265)],
    ids=["base", "base-fairseq-vocabulary", "large"],
)
def test_full_size(oracle, tmp_path, name, vocabulary):
    config = architecture(name, vocab_size=vocabulary, forced_bos_token_id=None)
    text = TextEncoder.gpt2("bart.base" if vocabulary == 51201 else "bart.large")
    fields = {"vocab_size": vocabulary, "d_model": config.encoder_embed_dim}
    for side in ("encoder", "decoder"):
        fields[f"{side}_layers"] = getattr(config, f"{side}_layers")
        fields[f"{side}_attention_heads"] = getattr(config, f"{side}_attention_heads")
        fields[f"{side}_ffn_dim"] = getattr(config, f"{side}_ffn_embed_dim")
    ids = random_ids(config, [40, 17], 16)
    case = {"config": fields, "ids": [rows.tolist() for rows in ids], "save": FORMS}
    (tmp_path / "case.json").write_text(json.dumps(case))
    oracle("oracle_full_size.py", tmp_path)
    expected = load_file(tmp_path / "logits.safetensors")["logits"]
    assert expected.shape == (2, 16, vocabulary) and expected.std() > 0.5

    compiled = None
    for form in FORMS:
        place = tmp_path / form
        weights = [path.name for path in place.iterdir() if path.suffix in (".safetensors", ".bin")]
        assert len(weights) == 1 if form != "sharded" else len(weights) > 2, weights
        text.save(place)
        bart = bart_hk.load(place)
        assert bart.config == config
        assert bart.encode("Hello world!").tolist() == [0, 31414, 232, 328, 2]
        compiled = compiled or jax.jit(partial(logits, bart.model))
        difference = np.abs(np.asarray(compiled(bart.params, *ids)) - expected).max()
        print(f"{name}, {vocabulary} symbols, {form}: largest difference {difference:.2g}")
        assert difference <= 1e-4, form
        del bart
        shutil.rmtree(place)
