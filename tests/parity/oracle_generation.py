"""Run by the oracle's interpreter: transformers' greedy search over the folder's `sources.json`.

The model is the directory `model`; the ids it generates for each source go into `greedy.json`.
"""

import json
import sys
from pathlib import Path

import torch
import transformers


def main(folder: Path) -> None:
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "model").eval()
    found = []
    for source in json.loads((folder / "sources.json").read_text()):
        with torch.no_grad():
            ids = model.generate(
                torch.tensor([source]), num_beams=1, do_sample=False, max_new_tokens=30
            )
        found.append(ids[0].tolist())
    (folder / "greedy.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
