"""Run by the interpreter of `.venv-peers`: what transformers' Flax makes of our files, and its own.

`cases.json` names for each model a `flax` folder and an `hf` folder of ours, and `ids`. Flax opens
the first and torch both; `CASE.safetensors` gets Flax's logits and parameters
(`params/...`), `CASE_torch.safetensors` torch's, `CASE_from_flax.safetensors` those that torch read
from Flax's file, and `CASE_plain`, `CASE_sharded`, `CASE_safe` what Flax saves itself.
`report.json` has what was missing or unexpected. `per_head.dat` is restored by flax into
`per_head.safetensors`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
import transformers
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from transformers.modeling_flax_pytorch_utils import load_flax_checkpoint_in_pytorch_model


def as_arrays(tree: Any, prefix: str) -> dict[str, np.ndarray]:
    flat = flatten_dict(tree, sep="/")
    return {f"{prefix}{name}": np.ascontiguousarray(np.asarray(a)) for name, a in flat.items()}


def numbered(tree: Any) -> Any:
    if isinstance(tree, list):
        return {str(i): numbered(value) for i, value in enumerate(tree)}
    return {k: numbered(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def main(folder: Path) -> None:
    report: dict[str, Any] = {}
    for name, case in json.loads((folder / "cases.json").read_text()).items():
        kind = json.loads((folder / case["flax"] / "config.json").read_text())["architectures"][0]
        flax_class, torch_class = (getattr(transformers, f"{p}{kind}") for p in ("Flax", ""))
        model, params = flax_class.from_pretrained(folder / case["flax"], _do_init=False)
        loaded = flax_class.from_pretrained(folder / case["flax"])
        assert flatten_dict(loaded.params).keys() == flatten_dict(params).keys()
        source, previous = (np.array(rows) for rows in case["ids"])
        arguments = {"attention_mask": (source != 1).astype(np.int32), "params": params}
        if "Classification" not in kind:
            arguments["decoder_input_ids"] = previous
        output = np.asarray(model(source, **arguments)[0], np.float32)
        save_file(
            {"output": output, **as_arrays(params, "params/")}, folder / f"{name}.safetensors"
        )
        for form, options in {
            "plain": {},
            "sharded": {"max_shard_size": "8KB"},
            "safe": {"safe_serialization": True},
        }.items():
            loaded.save_pretrained(folder / f"{name}_{form}", params=params, **options)
        straight, info = torch_class.from_pretrained(folder / case["hf"], output_loading_info=True)
        # `from_flax=True` fails in 4.57, on tensors without memory; this is what it would call.
        crossed = torch_class(straight.config)
        load_flax_checkpoint_in_pytorch_model(crossed, folder / case["flax"] / "flax_model.msgpack")
        crossed.tie_weights()
        for which, torch_model in (("torch", straight), ("from_flax", crossed)):
            state = {k: v.clone().contiguous() for k, v in torch_model.state_dict().items()}
            save_torch(state, folder / f"{name}_{which}.safetensors")
        report[name] = {key: sorted(value) for key, value in info.items() if value}
    (folder / "report.json").write_text(json.dumps(report))
    tree = numbered(msgpack_restore((folder / "per_head.dat").read_bytes()))
    save_file(as_arrays(tree, ""), folder / "per_head.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
