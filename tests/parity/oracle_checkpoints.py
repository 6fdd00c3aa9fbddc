"""Run by the oracle's interpreter: the real fairseq writes and opens checkpoints.

What `write.json` names is built with random weights from its `fields` and saved as by the trainer:
`CASE.pt`, with its logits for `ids` in `CASE.written.safetensors`. Without it, the folders in
`cases.json` are opened.

A case names its `directory`, `kwargs` for `BARTModel.from_pretrained`, `text`, padded `ids` (source
and decoder input) and, as lists, `sources` to generate from, or `masked` texts to fill. Results:
`CASE.safetensors` with the logits and each head's, and `report.json` with what fairseq made of the
folder.
"""

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from _oracles import fairseq_bart
from fairseq import checkpoint_utils
from fairseq.models.bart import BARTModel
from fairseq.sequence_generator import EnsembleModel
from safetensors.torch import save_file


def load_as_fairseq_does(load: Any) -> Any:
    """`torch.load` with the default of the torch that this fairseq was written for."""
    return lambda *args, **kwargs: load(*args, **{"weights_only": False, **kwargs})


def write(folder: Path, name: str, case: dict[str, Any]) -> None:
    torch.manual_seed(1)
    model = fairseq_bart(case["fields"])
    for parameter in model.parameters():
        parameter += 0.01 * torch.randn(parameter.shape)
    source, previous = (torch.tensor(rows) for rows in case["ids"])
    logits = {"logits": model(source, None, previous)[0]}
    save_file(logits, folder / f"{name}.written.safetensors")
    args = Namespace(**{**case["fields"], "arch": case["arch"], "task": "denoising"})
    content = {"args": args, "cfg": None, "model": model.state_dict()}
    checkpoint_utils.torch_persistent_save(content, str(folder / f"{name}.pt"))


def main(folder: Path) -> None:
    report = {}
    if (folder / "write.json").exists():
        for name, case in json.loads((folder / "write.json").read_text()).items():
            write(folder, name, case)
        return
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        directory = folder / case["directory"]
        kwargs = {}
        if (directory / "encoder.json").exists():
            kwargs["gpt2_encoder_json"] = str(directory / "encoder.json")
            kwargs["gpt2_vocab_bpe"] = str(directory / "vocab.bpe")
        bart = BARTModel.from_pretrained(str(directory), **kwargs, **case.get("kwargs", {}))
        bart.eval()
        source, previous = (torch.tensor(rows) for rows in case["ids"])
        arrays = {"logits": bart.model(source, None, previous)[0]}
        heads = bart.model.classification_heads
        for head in heads:
            arrays[f"heads/{head}"] = bart.predict(head, source[:1], return_logits=True)
        found = []
        for row in case.get("sources", []):
            (hypotheses,) = bart.generate([torch.tensor(row)], **case["options"])
            found.append([(h["tokens"].tolist(), h["score"].item()) for h in hypotheses])
        labels = getattr(bart.task, "label_dictionary", None)
        report[name] = {
            "task": type(bart.task).__name__,
            "symbols": bart.task.source_dictionary.symbols,
            "labels": labels.symbols[labels.nspecial :] if labels is not None else None,
            "encoded": bart.encode(case["text"]).tolist() if "text" in case else None,
            "generated": found,
            "filled": [
                [(text, score.item()) for text, score in row]
                for row in (
                    bart.fill_mask(case["masked"], **case["filling"]) if "masked" in case else []
                )
            ],
        }
        save_file({k: v.contiguous() for k, v in arrays.items()}, folder / f"{name}.safetensors")
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    torch.load = load_as_fairseq_does(torch.load)
    # Or the beam size of one search stays behind in the attention of everything after it.
    EnsembleModel.set_decoder_beam_size = lambda self, beam_size: None
    with torch.no_grad():
        main(Path(sys.argv[1]))
