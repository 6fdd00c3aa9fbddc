"""Run by the oracle's interpreter: a folder's decoder_only model in transformers' BartForCausalLM.

`model/` is the model as we write it, `ids.json` what it reads. Results: `logits.safetensors`, and
`said.json` with the tensors that transformers has and the file has not, and the other way round.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file


def main(folder: Path) -> None:
    content = json.loads((folder / "model" / "config.json").read_text())
    del content["model_type"], content["architectures"]
    config = transformers.BartConfig(**content, is_decoder=True)
    model = transformers.BartForCausalLM(config).eval()
    stored = load_file(folder / "model" / "model.safetensors")
    stored["lm_head.weight"] = stored["model.shared.weight"]
    stored["model.decoder.embed_tokens.weight"] = stored.pop("model.shared.weight")
    missing, unexpected = model.load_state_dict(stored, strict=False)
    tokens = torch.tensor(json.loads((folder / "ids.json").read_text()))
    save_file({"logits": model(tokens).logits}, folder / "logits.safetensors")
    (folder / "said.json").write_text(json.dumps([missing, unexpected]))


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]))
