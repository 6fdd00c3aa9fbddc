"""Run by the oracle's interpreter: a BART of full size with random weights, saved by transformers.

`case.json` holds the fields of its `BartConfig`, padded `ids` (source and decoder input) and, by
folder, the options of `save_pretrained`. Its logits are in `logits.safetensors`.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BartConfig, BartForConditionalGeneration


def main(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text())
    torch.manual_seed(1)
    model = BartForConditionalGeneration(BartConfig(**case["config"])).eval()
    for parameter in model.parameters():
        parameter += 0.01 * torch.randn(parameter.shape)
    source, previous = (torch.tensor(rows) for rows in case["ids"])
    mask = source.ne(1).long()
    logits = model(source, attention_mask=mask, decoder_input_ids=previous).logits
    save_file({"logits": logits.contiguous()}, folder / "logits.safetensors")
    for place, options in case["save"].items():
        model.save_pretrained(folder / place, **options)


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]))
