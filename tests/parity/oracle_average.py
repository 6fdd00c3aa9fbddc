"""Run by the oracle's interpreter: checkpoints to average, and what becomes of their average.

Without `averaged/` in the folder, three checkpoints are written, `NUMBER.pt`, in single and
`half/NUMBER.pt` in half precision, and their means as fairseq's `scripts/average_checkpoints.py`
takes them: sums in the order of the files, of halves in float32, and one division. With it, the
real fairseq opens the averages strictly, and both states' logits are in `logits.safetensors`.
"""

import json
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.models.bart import BARTModel
from oracle_checkpoints import load_as_fairseq_does
from oracle_dialects import arguments, as_args, trained
from safetensors.torch import load_file, save_file

COUNT = 3


def averaged(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = OrderedDict()
    for state in states:
        for name, tensor in state.items():
            tensor = tensor.float() if tensor.dtype == torch.float16 else tensor
            total[name] = total[name] + tensor if name in total else tensor.clone()
    return OrderedDict((name, tensor / len(states)) for name, tensor in total.items())


def write(folder: Path, about: dict[str, Any]) -> None:
    for kind, dtype in (("", torch.float32), ("half", torch.float16)):
        states = []
        (folder / kind).mkdir(exist_ok=True)
        for number in range(COUNT):
            torch.manual_seed(number)
            model = trained(folder, about, {"wide": (2, 50)})
            for parameter in model.parameters():
                parameter += 0.02 * torch.randn(parameter.shape)
            states.append(model.to(dtype).state_dict())
            content = {
                **as_args(arguments(about["fields"])),
                "model": states[-1],
                "optimizer_history": [{"num_updates": number, "lr_scheduler_state": {}}],
                "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 0}},
                "last_optimizer_state": {"state": {0: torch.ones(9)}, "param_groups": []},
            }
            checkpoint_utils.torch_persistent_save(content, str(folder / kind / f"{number}.pt"))
        mean = {name: tensor.contiguous().clone() for name, tensor in averaged(states).items()}
        save_file(mean, folder / kind / "mean.safetensors")


def open_averages(folder: Path, about: dict[str, Any]) -> None:
    source, previous = (torch.tensor(rows) for rows in about["ids"])
    arrays = {}
    for kind in ("", "half"):
        place = folder / kind / "averaged"
        bart = BARTModel.from_pretrained(
            str(place),
            gpt2_encoder_json=str(place / "encoder.json"),
            gpt2_vocab_bpe=str(place / "vocab.bpe"),
        ).eval()
        mean = load_file(folder / kind / "mean.safetensors")
        found = torch.load(place / "model.pt")["model"]
        assert found.keys() == mean.keys()
        assert all(torch.equal(found[name], mean[name]) for name in mean)
        arrays[f"averaged{kind}"] = bart.model(source, None, previous)[0].contiguous()
        bart.model.load_state_dict(mean, strict=True)
        arrays[f"expected{kind}"] = bart.model(source, None, previous)[0].contiguous()
    save_file(arrays, folder / "logits.safetensors")


def main(folder: Path) -> None:
    about = json.loads((folder / "case.json").read_text())
    (open_averages if (folder / "averaged").exists() else write)(folder, about)


if __name__ == "__main__":
    torch.load = load_as_fairseq_does(torch.load)
    with torch.no_grad():
        main(Path(sys.argv[1]))
