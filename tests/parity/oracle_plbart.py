"""Run by the oracle's interpreter: PLBarts as transformers writes and opens them.

With `given.json` in the folder (fields of the config, padded `ids`, `texts`, `sources` for a search
of `beam`), a small random model and its tokenizer, over the SentencePiece model `pieces.model`, are
saved in `base`, `multi` and, with a head, in `classes`. What is in `again/`, saved by somebody
else, is opened as well. Logits are in `NAME.safetensors`, the rest in `answers.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from _oracles import randomise
from safetensors.torch import save_file
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PLBartConfig,
    PLBartForConditionalGeneration,
    PLBartForSequenceClassification,
    PLBartTokenizer,
)


def answers(place: Path, given: dict[str, Any], out: Path) -> dict[str, Any]:
    """What the model and the tokenizer in a folder give."""
    tokenizer = AutoTokenizer.from_pretrained(place)
    source, previous = (torch.tensor(rows) for rows in given["ids"])
    arguments = {"input_ids": source, "attention_mask": source.ne(1).long()}
    found: dict[str, Any] = {
        "tokenizer": type(tokenizer).__name__,
        "ids": tokenizer(given["texts"], add_special_tokens=False)["input_ids"],
        "languages": tokenizer.additional_special_tokens,
        "language_ids": tokenizer.convert_tokens_to_ids(tokenizer.additional_special_tokens),
        "mask_id": tokenizer.mask_token_id,
        "framed": tokenizer(given["texts"])["input_ids"],
    }
    if json.loads((place / "config.json").read_text())["architectures"][0].endswith("cation"):
        model = AutoModelForSequenceClassification.from_pretrained(place).eval()
        rows = [model(row[row != 1][None]).logits[0] for row in source]
        arrays = {"classes": torch.stack(rows)}
        found["labels"] = [model.config.id2label[i] for i in range(model.config.num_labels)]
    else:
        model = AutoModelForSeq2SeqLM.from_pretrained(place).eval()
        arrays = {"logits": model(**arguments, decoder_input_ids=previous).logits}
        found["generated"] = [
            model.generate(torch.tensor([row]), num_beams=3, max_new_tokens=10)[0].tolist()
            for row in given["sources"]
        ]
    found["class"] = type(model).__name__
    save_file({k: v.contiguous() for k, v in arrays.items()}, out)
    return found


def write(folder: Path, given: dict[str, Any]) -> None:
    for name, codes in (("base", "base"), ("multi", "multi"), ("classes", "base")):
        tokenizer = PLBartTokenizer(str(folder / "pieces.model"), language_codes=codes)
        size = len(tokenizer) - (name == "multi")  # whose models have no row for <mask>
        config = PLBartConfig(
            vocab_size=size,
            id2label={0: "bad", 1: "fair", 2: "good"},
            label2id={"bad": 0, "fair": 1, "good": 2},
            decoder_start_token_id=tokenizer.lang_code_to_id["__python__"],
            **given["config"],
        )
        classify = PLBartForSequenceClassification
        kind = classify if name == "classes" else PLBartForConditionalGeneration
        model = kind(config).eval()
        randomise(model, seed=len(name))
        model.tie_weights()
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def main(folder: Path) -> None:
    given = json.loads((folder / "given.json").read_text())
    places = sorted((folder / "again").glob("*")) if (folder / "again").exists() else []
    if not places:
        write(folder, given)
        places = [folder / name for name in ("base", "multi", "classes")]
    found = {p.name: answers(p, given, folder / f"{p.name}.safetensors") for p in places}
    (folder / "answers.json").write_text(json.dumps(found))


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]))
