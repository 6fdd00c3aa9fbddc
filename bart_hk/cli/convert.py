"""`bart-hk-convert`: any BART that can be read, in the format of your choice.

bart-hk-convert bart.large.mnli OUT --to hf --head mnli
bart-hk-convert facebook/bart-base OUT --to fairseq
bart-hk-convert bart.large.cnn STUDENT --to native --decoder-layers 3
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.checkpoint.fairseq_file import CHECKPOINT, write_fairseq
from bart_hk.checkpoint.flax import FLAX_WEIGHTS
from bart_hk.checkpoint.huggingface import UNNAMED_HEAD, write_model
from bart_hk.checkpoint.huggingface_config import transformers_lacks
from bart_hk.checkpoint.model_files import ModelFiles
from bart_hk.checkpoint.per_head import PER_HEAD_WEIGHTS
from bart_hk.checkpoint.students import student
from bart_hk.checkpoint.weights import WEIGHTS, float_dtype
from bart_hk.hub.opening import open_model
from bart_hk.text import TextEncoder

_log = logging.getLogger(__name__)

_FORMATS = {
    "hf": "config.json, model.safetensors and tokenizer files that transformers opens",
    "flax": "as hf, with the flax_model.msgpack of transformers' Flax models",
    "per-head": "as hf, with the params.dat of the JAX port of bart-base",
    "fairseq": "model.pt and dict.txt that fairseq opens",
    "native": "as hf, and what transformers has no word for as well (bart_hk.load opens both)",
}
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def convert(
    source: str,
    destination: str | Path,
    to: str,
    *,
    dtype: str | None = None,
    head: str | None = None,
    max_shard_size: int | None = None,
    encoder_layers: int | None = None,
    decoder_layers: int | None = None,
    checkpoint_file: str = CHECKPOINT,
    data: str = ".",
    **where: Any,
) -> None:
    """Reads `source` as `bart_hk.load` does and writes the new folder `destination`.

    The folder appears under its name when it is complete.

    Args:
        to: "hf", "flax", "per-head", "fairseq" or "native".
        dtype: of the written tensors, such as "float16"; as stored by default.
        head: for transformers, which has one unnamed head: the one that it gets. A head that came
            from there goes back without being named.
        max_shard_size: bytes of a file of tensors, where one of that name is not enough.
        encoder_layers, decoder_layers: how many of its layers are kept; see
            `bart_hk.checkpoint.students`.
        checkpoint_file, data, where: as for `open_model`.

    Raises:
        FileExistsError: `destination` is there and not empty.
        ValueError: the format cannot express the model, or as for `open_model`.
    """
    destination = Path(destination)
    _check_free(destination)
    if head is not None and to in ("fairseq", "per-head"):
        raise ValueError(f"--head {head} is for --to hf and flax: --to {to} keeps every head")
    if max_shard_size is not None and to in ("fairseq", "per-head"):
        raise ValueError(f"--max-shard-size is for --to hf, flax and native: {to} has one file")
    members, text = open_model(source, checkpoint_file, data, **where)
    if len(members) > 1:
        raise ValueError(f"{source} is an ensemble of {len(members)}: convert them one by one")
    (model,) = members
    model.params, model.config = student(model.params, model.config, encoder_layers, decoder_layers)
    if to in ("hf", "flax") and (lacking := transformers_lacks(model.config)):
        values = ", ".join(f"{name}={getattr(model.config, name)}" for name in lacking)
        raise ValueError(f"transformers has no BART with {values}; write it with --to native")
    if to in ("hf", "flax") and UNNAMED_HEAD in model.heads:  # it came from transformers
        head = head or UNNAMED_HEAD
    if dtype is not None:
        _cast(model, float_dtype(dtype))
    _WRITERS[to](destination, model, text, head, max_shard_size)
    # mBART's own frame, which their tokenizers have, comes with a suffix.
    plain = not model.extras.get("prepend_bos", True) and "source_suffix" not in model.extras
    if to in ("hf", "flax", "fairseq") and plain:
        _log.warning(
            "%s was trained on texts without <s> (task.prepend_bos=false), and the tokenizers of "
            "transformers and fairseq put one before each: leave it out there",
            source,
        )


def _check_free(destination: Path) -> None:
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} is there already; name a folder that is not")


def _cast(model: ModelFiles, dtype: np.dtype) -> None:
    for tree in (model.params, *(head.params for head in model.heads.values())):
        for leaves in tree.values():
            for name, array in leaves.items():
                leaves[name] = np.asarray(array).astype(dtype, copy=False)


def _write_huggingface(
    folder: Path,
    model: ModelFiles,
    text: TextEncoder,
    head: str | None,
    shard: int | None,
    layout: str = WEIGHTS,
) -> None:
    write_model(
        folder,
        model.config,
        model.params,
        model.heads,
        model.extras,
        head=head,
        layout=layout,
        also=lambda staging: text.save(staging, model.config.max_positions),
        max_shard_size=shard,
    )


def _write_fairseq(
    folder: Path, model: ModelFiles, text: TextEncoder, head: str | None, shard: int | None
) -> None:
    write_fairseq(folder, model.config, model.params, model.heads, text, extras=model.extras)


def _size(text: str) -> int:
    """Bytes: "15MB" or "5GB", as transformers writes them, or a plain number."""
    number = text.upper().removesuffix("B")
    factor = {"K": 10**3, "M": 10**6, "G": 10**9}.get(number[-1:], 1)
    digits = number if factor == 1 else number[:-1]
    if not digits.isdecimal() or int(digits) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 15MB or 5GB")
    return int(digits) * factor


_WRITERS: dict[str, Callable[[Path, ModelFiles, TextEncoder, str | None, int | None], None]] = {
    "hf": _write_huggingface,
    "native": _write_huggingface,
    "flax": partial(_write_huggingface, layout=FLAX_WEIGHTS),
    "per-head": partial(_write_huggingface, layout=PER_HEAD_WEIGHTS),
    "fairseq": _write_fairseq,
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command; gives its exit code: 0, or 2 with one line on standard error."""
    summary, _, examples = (__doc__ or "").partition("\n\n")
    formats = "\n".join(f"  {name:8} {about}" for name, about in _FORMATS.items())
    parser = argparse.ArgumentParser(
        prog="bart-hk-convert",
        description=summary,
        epilog=f"formats:\n{formats}\n\nexamples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="what bart_hk.load takes: a folder, file, name, address")
    parser.add_argument("destination", help="the folder to write, which must be new")
    parser.add_argument("--to", choices=_FORMATS, required=True)
    parser.add_argument("--dtype", choices=_DTYPES, help="of the tensors; as stored by default")
    parser.add_argument("--head", help="the head that transformers gets")
    parser.add_argument(
        "--max-shard-size", type=_size, metavar="SIZE", help="of a file of tensors, such as 15MB"
    )
    for side in ("encoder", "decoder"):
        parser.add_argument(
            f"--{side}-layers", type=int, metavar="N", help="keep so many of them, evenly spread"
        )
    parser.add_argument("--checkpoint-file", default=CHECKPOINT, help="of a fairseq folder")
    parser.add_argument("--data", default=".", metavar="DIR", help="where the dictionary is")
    parser.add_argument("--revision", help="of a repository of Hugging Face's hub")
    parser.add_argument("--cache-dir", help="where downloads and unpacked archives are kept")
    parser.add_argument("--local-files-only", action="store_true", help="download nothing")
    arguments = vars(parser.parse_args(argv))
    if arguments["dtype"]:
        arguments["dtype"] = _DTYPES[arguments["dtype"]]
    logging.basicConfig(format="%(message)s")
    try:
        convert(arguments.pop("source"), arguments.pop("destination"), **arguments)
    except (OSError, ValueError) as error:
        print(f"bart-hk-convert: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
