"""Checkpoints as torch saves them, in both containers, and what they hold (`expected.json`).

Run by `make_goldens.py`. The files are read without torch by `bart_hk.torch_format`.
"""

import sys
from pathlib import Path

import torch
from _recording import input_hash, write_json
from _torch_contents import contents, describe


def main(out: Path) -> None:
    expected = {}
    for name, content in contents().items():
        expected[name] = describe(content)
        for container, is_zip in (("zip", True), ("legacy", False)):
            file = out / f"{name}_{container}.pt"
            torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    source = Path(__file__).with_name("_torch_contents.py")
    write_json(out / "expected.json", {"contents": expected}, input_hash(source))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
