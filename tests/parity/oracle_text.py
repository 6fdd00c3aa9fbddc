"""Run by the oracle's interpreter: what it makes of `texts.json` with the tokenizers in the folder.

`cases.json` names, for each directory, whether transformers has a fast class for it and whether
fairseq opens it. `answers.json` gets, per directory and reader, the ids and the text decoded from
them, and transformers' special ids.
"""

import json
import sys
from pathlib import Path
from typing import Any

from fairseq.data import Dictionary
from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE, SentencepieceConfig
from transformers import AutoTokenizer


def by_transformers(directory: Path, texts: list[str], fast: bool) -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=fast)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return {
        "class": type(tokenizer).__name__,
        "size": len(tokenizer),
        "special": [
            getattr(tokenizer, f"{name}_token_id") for name in ("bos", "pad", "eos", "unk", "mask")
        ],
        "ids": ids,
        "text": [tokenizer.decode(row, clean_up_tokenization_spaces=False) for row in ids],
    }


def by_fairseq(directory: Path, texts: list[str]) -> dict[str, Any]:
    model = directory / "sentencepiece.bpe.model"
    if model.exists():
        bpe = SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(model)))
    else:
        bpe = GPT2BPE(
            GPT2BPEConfig(
                gpt2_encoder_json=str(directory / "encoder.json"),
                gpt2_vocab_bpe=str(directory / "merges.txt"),
            )
        )
    dictionary = Dictionary.load(str(directory / "dict.txt"))
    ids = [
        dictionary.encode_line(bpe.encode(text), append_eos=False, add_if_not_exist=False).tolist()
        for text in texts
    ]
    text = [bpe.decode(dictionary.string(row)) for row in ids]
    return {"size": len(dictionary), "ids": ids, "text": text}


def main(folder: Path) -> None:
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    answers: dict[str, dict[str, Any]] = {}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        answers[name] = {"slow": by_transformers(folder / name, texts, fast=False)}
        if case["fast"]:
            answers[name]["fast"] = by_transformers(folder / name, texts, fast=True)
        if case["fairseq"]:
            answers[name]["fairseq"] = by_fairseq(folder / name, texts)
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
