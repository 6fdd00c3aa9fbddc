"""Zero-shot classification by transformers' own pipeline, with a small model of random weights.

`NAME.safetensors` are the weights, under transformers' names; `cases.json` holds the config, the
tokenizer's files, what the pipeline was asked, and its labels and scores.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from _oracles import randomise
from _recording import input_hash, write_arrays, write_json
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    BartConfig,
    BartForSequenceClassification,
    BartTokenizer,
    ZeroShotClassificationPipeline,
)

TEXTS = [
    "The cup final went to penalties after a goalless draw.",
    "Parliament voted on the new budget late on Thursday night.",
    "a bad film",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
NAMES = {
    "mnli": ["contradiction", "neutral", "entailment"],
    "entailment_first": ["ENTAILMENT", "neutral", "contradiction"],
    "unnamed": ["LABEL_0", "LABEL_1"],
}
ASKED: list[dict[str, Any]] = [
    {"candidate_labels": ["sport", "politics", "film"]},
    {"candidate_labels": ["sport", "politics", "film"], "multi_label": True},
    {"candidate_labels": ["politics"]},
    {
        "candidate_labels": ["sport", "a very long name of a class"],
        "hypothesis_template": "This text is about {}, I think.",
    },
]
POSITIONS = 48  # a text is longer with some hypotheses, and is cut


def tokenizer(folder: str) -> tuple[BartTokenizer, dict[str, str]]:
    plain = ByteLevelBPETokenizer()
    asked = "This example is sport. This text is about a very long name of a class, I think."
    lines = [*TEXTS, asked]
    plain.train_from_iterator(lines, vocab_size=420, min_frequency=1, special_tokens=SPECIAL)
    plain.save_model(folder)
    files = {name: (Path(folder) / name).read_text() for name in ("vocab.json", "merges.txt")}
    return BartTokenizer.from_pretrained(folder, model_max_length=POSITIONS), files


def main(out: Path) -> None:
    with TemporaryDirectory() as folder:
        words, files = tokenizer(folder)
        cases, configs = [], {}
        for seed, (name, labels) in enumerate(NAMES.items()):
            config = BartConfig(
                vocab_size=len(words),
                d_model=16,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=24,
                decoder_ffn_dim=24,
                max_position_embeddings=POSITIONS,
                id2label=dict(enumerate(labels)),
                label2id={label: i for i, label in enumerate(labels)},
            )
            model = BartForSequenceClassification(config).eval()
            randomise(model, seed)
            with torch.no_grad():  # far from even, so that every option shows
                model.classification_head.out_proj.weight *= 8
            state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
            for copy in ("encoder", "decoder"):
                state.pop(f"model.{copy}.embed_tokens.weight", None)
            write_arrays(out / f"{name}.safetensors", state, input_hash(seed, files))
            pipeline = ZeroShotClassificationPipeline(model=model, tokenizer=words, framework="pt")
            for asked in ASKED:
                answers = [pipeline(text, **asked) for text in TEXTS]
                kept = [{key: a[key] for key in ("labels", "scores")} for a in answers]
                cases.append({"model": name, "asked": asked, "answers": kept})
            model.config.architectures = ["BartForSequenceClassification"]
            model.config.save_pretrained(folder)
            configs[name] = json.loads((Path(folder) / "config.json").read_text())
            configs[name].pop("transformers_version")
        content = {"texts": TEXTS, "tokenizer": files, "configs": configs, "cases": cases}
        write_json(out / "cases.json", content, input_hash(TEXTS, files, ASKED))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
