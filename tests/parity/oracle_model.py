"""Run by the oracle's interpreter: logits of the models in the folder's `cases.json`.

A case names `ids` (source and decoder input), and either or both of `directory`, which transformers
opens, and `state`, which fairseq loads into a model of `fields`. With `target` transformers gives
the gradient of the summed cross-entropy, too. Results: `CASE.safetensors` with the logits by
framework, `CASE.gradients.safetensors`, and `report.json` with what transformers said while it
opened each.
"""

import gc
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from _oracles import cross_entropy, fairseq_bart
from safetensors.torch import load_file, save_file


def open_with_transformers(directory: Path) -> tuple[Any, dict[str, Any]]:
    """The model, None where it is refused, and everything that transformers remarked."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    handler.addFilter(lambda record: "CUDA-fused xIELU" not in record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    architecture = json.loads((directory / "config.json").read_text())["architectures"][0]
    classifies = architecture.endswith("ForSequenceClassification")
    kind = (
        transformers.AutoModelForSequenceClassification
        if classifies
        else transformers.AutoModelForSeq2SeqLM
    )
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model, info = kind.from_pretrained(directory, output_loading_info=True)
    except ValueError as error:
        return None, {"refused": str(error)}
    finally:
        logger.removeHandler(handler)
    said += [str(w.message) for w in caught] + [f"{k}: {v}" for k, v in info.items() if v]
    return model.eval(), {"class": type(model).__name__, "said": said}


def main(folder: Path) -> None:
    report = {}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        source, previous = (torch.tensor(rows) for rows in case["ids"])
        logits = {}
        if "state" in case:
            model = fairseq_bart(case["fields"])
            model.load_state_dict(load_file(folder / case["state"]), strict=True)
            logits["fairseq"] = model(source, None, previous)[0]
            del model
        if "directory" in case:
            model, report[name] = open_with_transformers(folder / case["directory"])
            if model is not None:
                pad = model.config.pad_token_id
                with torch.set_grad_enabled("target" in case):
                    result = model(
                        source, attention_mask=source.ne(pad).long(), decoder_input_ids=previous
                    )
                    if "target" in case:
                        cross_entropy(result.logits, torch.tensor(case["target"]), pad).backward()
                        gradients = {n: p.grad for n, p in model.named_parameters()}
                        save_file(gradients, folder / f"{name}.gradients.safetensors")
                logits["transformers"] = result.logits.detach()
                report[name]["labels"] = model.config.id2label
                del model
        gc.collect()
        save_file({k: v.contiguous() for k, v in logits.items()}, folder / f"{name}.safetensors")
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    with torch.no_grad():
        main(Path(sys.argv[1]))
