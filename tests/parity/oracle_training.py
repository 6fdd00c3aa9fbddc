"""Run by the oracle's interpreter: fairseq's Trainer on the folder's `case.json`.

`before.safetensors` holds the model's parameters under fairseq's names. Results: the arrays in
`after.safetensors` and the rest in `found.json`, as `_training_oracle.train` gives them.
"""

import json
import sys
from pathlib import Path

import torch
from _training_oracle import train
from safetensors.torch import load_file, save_file


def main(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text())
    found = train(case, load_file(folder / "before.safetensors"))
    arrays = found.pop("arrays")
    save_file({k: torch.tensor(v) for k, v in arrays.items()}, folder / "after.safetensors")
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
