"""Run by the oracle's interpreter: transformers and fairseq use models that were trained here.

The folder holds `asked.json` (texts of the two models), and of each of `classifier` and `writer`
what `bart-hk-convert` made: `NAME-hf` and `NAME-fairseq`. `answered.json` gets what they say.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from fairseq.models.bart import BARTModel
from fairseq.sequence_generator import EnsembleModel
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)


def opened(folder: Path, **options: str) -> Any:
    files = {
        "gpt2_encoder_json": str(folder / "encoder.json"),
        "gpt2_vocab_bpe": str(folder / "vocab.bpe"),
    }
    return BARTModel.from_pretrained(str(folder), **files, **options).eval()


def main(folder: Path) -> None:
    asked = json.loads((folder / "asked.json").read_text())
    found: dict[str, Any] = {}
    model = AutoModelForSequenceClassification.from_pretrained(folder / "classifier-hf").eval()
    words = AutoTokenizer.from_pretrained(folder / "classifier-hf")
    classify = pipeline("text-classification", model=model, tokenizer=words, top_k=None)
    found["classes"] = [
        {entry["label"]: entry["score"] for entry in row} for row in classify(asked["classifier"])
    ]
    writer = AutoModelForSeq2SeqLM.from_pretrained(folder / "writer-hf").eval()
    words = AutoTokenizer.from_pretrained(folder / "writer-hf")
    rows = words(asked["writer"], return_tensors="pt", padding=True)
    ids = writer.generate(**rows, num_beams=2, max_new_tokens=14, min_length=0)
    found["texts"] = words.batch_decode(ids, skip_special_tokens=True)

    bart = opened(folder / "classifier-fairseq", task="sentence_prediction")
    labels = bart.task.label_dictionary
    (head,) = bart.model.classification_heads
    found["fairseq classes"] = []
    for text in asked["classifier"]:
        scores = bart.predict(head, bart.encode(text))[0].exp().tolist()
        names = labels.symbols[labels.nspecial :]
        found["fairseq classes"].append(dict(zip(names, scores)))  # noqa: B905 - Python 3.9
    bart = opened(folder / "writer-fairseq")
    found["fairseq texts"] = bart.sample(asked["writer"], beam=2, max_len_b=14)
    (folder / "answered.json").write_text(json.dumps(found))


if __name__ == "__main__":
    load = torch.load
    torch.load = lambda *args, **kwargs: load(*args, **{"weights_only": False, **kwargs})
    # Or the beam size of one search stays behind in the attention of everything after it.
    EnsembleModel.set_decoder_beam_size = lambda self, beam_size: None
    with torch.no_grad():
        main(Path(sys.argv[1]))
