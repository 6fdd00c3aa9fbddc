"""torch.save and torch.load beside ours, and transformers' `pytorch_model.bin`.

Saves into `saved/` what checkpoints hold, and tensors at random; `saved.json` describes them. Opens
the files of `written/` in each way that torch has: `written.json`. `hf_*/` are the same BART as
safetensors, as pytorch_model.bin, in shards, and in the legacy container.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from _torch_contents import contents, describe

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8)


def random_tensors(seed: int) -> dict[str, Any]:
    """Views of a few storages, cut, transposed, expanded and stepped through at random."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    found = {}
    for storage in range(6):
        shape = [number(1, 6) for _ in range(number(1, 4))]
        base = (100 * torch.randn(shape, generator=generator)).abs().to(DTYPES[storage])
        for view in range(6):
            tensor = base
            for _ in range(number(0, 4)):
                axis = number(0, max(0, tensor.dim() - 1))
                match number(0, 5) if tensor.dim() else 4:
                    case 0:
                        tensor = tensor.transpose(0, axis)
                    case 1:
                        begin = number(0, tensor.shape[axis])
                        tensor = tensor.narrow(axis, begin, number(0, tensor.shape[axis] - begin))
                    case 2 if tensor.shape[axis]:
                        tensor = tensor.select(axis, number(0, tensor.shape[axis] - 1))
                    case 3:
                        tensor = tensor[:: number(1, 3)]
                    case 4:
                        tensor = tensor.unsqueeze(0).expand(number(1, 3), *tensor.shape)
                    case _:
                        tensor = tensor.detach().requires_grad_(tensor.is_floating_point())
            found[f"{storage}.{view}"] = tensor
    return found


def save_bart(folder: Path) -> None:
    """One small BART of transformers in all the forms that its weights may have on disk."""
    config = transformers.BartConfig(
        vocab_size=60,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=20,
        max_position_embeddings=14,
    )
    torch.manual_seed(0)
    model = transformers.BartForConditionalGeneration(config)
    model.save_pretrained(folder / "hf_safetensors")
    model.save_pretrained(folder / "hf_bin", safe_serialization=False)
    model.save_pretrained(folder / "hf_shards", safe_serialization=False, max_shard_size="8KB")
    model.save_pretrained(folder / "hf_legacy", safe_serialization=False)
    torch.save(
        model.state_dict(),
        folder / "hf_legacy" / "pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )
    model.half().save_pretrained(folder / "hf_half", safe_serialization=False)


def main(folder: Path) -> None:
    save_bart(folder)
    saved = {**contents(), **{f"random_{seed}": random_tensors(seed) for seed in range(20)}}
    (folder / "saved").mkdir()
    for name, content in saved.items():
        for container, is_zip in (("zip", True), ("legacy", False)):
            path = folder / "saved" / f"{name}_{container}.pt"
            torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    expected = {name: describe(content) for name, content in saved.items()}
    (folder / "saved.json").write_text(json.dumps(expected))

    opened = {}
    for path in sorted((folder / "written").iterdir()):
        ways = {"mmap": {"weights_only": False, "mmap": True}, "all": {"weights_only": False}}
        if not path.name.startswith("args"):  # a Namespace is not among the weights
            ways["weights_only"] = {"weights_only": True}
        for way, options in ways.items():
            opened[f"{path.stem} {way}"] = describe(torch.load(path, **options))
    (folder / "written.json").write_text(json.dumps(opened))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
