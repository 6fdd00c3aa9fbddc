"""PLBart, transformers' name for a BART of programming languages: read, and saved back."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import bart_hk
from tests.generation.conftest import INPUTS
from tests.parity.test_checkpoints_live import pieces
from tests.parity.test_model_live import our_logits

CONFIG = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 30,
}
IDS = [[[9, 30, 7, 5, 2], [8, 60, 2, 1, 1]], [[2, 0, 7, 11], [2, 0, 6, 90]]]
SOURCES = [[9, 30, 7, 5, 2], [8, 60, 14, 2], [100, 4, 2]]
NAMES = ("base", "multi", "classes")


@pytest.fixture(scope="module")
def folder(oracle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plbart")
    texts = (INPUTS / "sentences.txt").read_text(encoding="utf-8").splitlines()[:40]
    given = {"config": CONFIG, "ids": IDS, "texts": [*texts, "", " a  b "], "sources": SOURCES}
    (folder / "given.json").write_text(json.dumps(given))
    (folder / "pieces.model").write_bytes(pieces().model)
    oracle("oracle_plbart.py", folder)
    return folder


def agrees(bart, folder, name, texts):
    found = json.loads((folder / "answers.json").read_text())[name]
    arrays = load_file(folder / f"{name}.safetensors")
    ids = [np.array(rows) for rows in IDS]
    assert found["tokenizer"] == "PLBartTokenizer"
    assert bart.text.encode_batch(texts) == found["ids"]
    indices = bart.text.dictionary.indices
    assert [indices[code] for code in found["languages"]] == found["language_ids"]
    assert len(found["languages"]) == (7 if name == "multi" else 3)
    if name == "multi":  # its <mask> has no embedding
        assert bart.text.mask_id is None and found["mask_id"] in (None, bart.config.vocab_size)
    else:
        assert bart.text.mask_id == found["mask_id"] == bart.config.vocab_size - 1
    assert bart.config.decoder_start_token_id == indices["__python__"]
    if name == "classes":
        assert found["class"] == "PLBartForSequenceClassification"
        (head,) = bart.heads
        assert bart.heads[head].labels == found["labels"] == ["bad", "fair", "good"]
        rows = [row[row != 1] for row in ids[0]]
        logits = [bart.predict(head, row, return_logits=True)[0] for row in rows]
        np.testing.assert_allclose(logits, arrays["classes"], rtol=0, atol=1e-5)
        return
    assert found["class"] == "PLBartForConditionalGeneration"
    ours = our_logits(bart.config, bart.params, ids)
    np.testing.assert_allclose(ours, arrays["logits"], rtol=0, atol=1e-5)
    assert arrays["logits"].std() > 0.3
    for row, tokens in zip(SOURCES, found["generated"], strict=True):
        best = bart.generate(
            [np.array(row)], beam=3, max_len_b=9, early_stopping=False, attention=False
        )[0][0]["tokens"]
        assert tokens[0] == bart.config.decoder_start_token_id
        assert best.tolist() == [token for token in tokens[1:] if token != 1], row


@pytest.mark.parametrize("name", NAMES)
def test_a_plbart_of_transformers(folder, name):
    texts = json.loads((folder / "given.json").read_text())["texts"]
    agrees(bart_hk.load(folder / name), folder, name, texts)


def test_transformers_opens_what_we_save(folder, oracle, tmp_path):
    given = json.loads((folder / "given.json").read_text())
    for file in ("given.json", "pieces.model"):
        (tmp_path / file).write_bytes((folder / file).read_bytes())
    models = {name: bart_hk.load(folder / name) for name in NAMES}
    for name, bart in models.items():
        bart.save(tmp_path / "again" / name, head=next(iter(bart.heads), None))
    oracle("oracle_plbart.py", tmp_path)
    for name, bart in models.items():
        agrees(bart, tmp_path, name, given["texts"])
        again = bart_hk.load(tmp_path / "again" / name)
        agrees(again, tmp_path, name, given["texts"])
        before, after = (load_file(f / f"{name}.safetensors") for f in (folder, tmp_path))
        for key, array in before.items():
            np.testing.assert_array_equal(after[key], array)
