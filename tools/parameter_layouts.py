"""Writes docs/parameters.md: where every layout keeps every parameter of a BART.

python tools/parameter_layouts.py            # writes it
python tools/parameter_layouts.py --check    # says whether it is up to date

Nothing in the page is known to this tool: it has our writers write parameters that are all
different, and looks where each of them arrived.
"""

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bart_hk.checkpoint.fairseq import to_fairseq
from bart_hk.checkpoint.flax import flax_tensors
from bart_hk.checkpoint.huggingface import stored_tensors
from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.checkpoint.per_head import per_head_tree
from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import BARTConfig, architecture

PAGE = Path(__file__).resolve().parent.parent / "docs" / "parameters.md"
HEAD = "NAME"
Shapes = dict[str, tuple[int, ...]]
Params = dict[str, dict[str, np.ndarray]]

INTRODUCTION = """\
# Where every layout keeps every parameter

This page is generated (`python tools/parameter_layouts.py`) from what our writers write, with the
shapes of bart-base (vocabulary 50265). `N` is a layer's number. `bart_hk.load` reads all of these
layouts, and `bart-hk-convert --to native`, `fairseq`, `hf`, `flax` and `per-head` writes them; no
bit of a tensor changes on the way.

- **bart_hk**: Haiku's two-level tree, `bart.params[module][parameter]`. Linear layers are `w`
  [in, out]. A tied table is there once.
- **fairseq**: `model.pt`, under the key `model`. Linear layers are [out, in]. The copies of a tied
  table are all listed. Position tables begin with pad + 1 unused rows; ours with as many as
  `position_offset` says. Both are 2 in published models.
- **HF torch**: `model.safetensors`, `pytorch_model.bin`. As in fairseq, under `model.`.
- **HF Flax**: `flax_model.msgpack`. Linear layers are `kernel` [in, out], as ours; `scale` and
  `embedding` are what torch calls `weight`.
- **bart-base-jax**: `params.dat`, with heads as an axis. Its documentation has `q_proj` as [heads,
  width, head width] and `ff` as a matrix; both are read.
"""


class Layout(NamedTuple):
    """A column of the page."""

    title: str
    tensors: Callable[[BARTConfig, Params, dict[str, HeadFiles]], Mapping[str, np.ndarray]]


def _ours(config: BARTConfig, params: Params, heads: dict[str, HeadFiles]) -> Any:
    tree = dict(params)
    for name, head in heads.items():
        tree |= {f"classification_heads/{name}/{m}": p for m, p in head.params.items()}
    return {f"{path} {name}": a for path, leaves in tree.items() for name, a in leaves.items()}


def _fairseq(config: BARTConfig, params: Params, heads: dict[str, HeadFiles]) -> Any:
    known = {path: leaves for path, leaves in params.items() if path != "final_logits_bias"}
    config = config.replace(final_logits_bias=False)
    return to_fairseq(known, config, {name: head.params for name, head in heads.items()})


def _torch(config: BARTConfig, params: Params, heads: dict[str, HeadFiles]) -> Any:
    body, _ = stored_tensors(config, params, {}, None)
    with_head, _ = stored_tensors(config, params, heads, HEAD)
    return {name: make() for name, make in {**body, **with_head}.items()}


def _flax(config: BARTConfig, params: Params, heads: dict[str, HeadFiles]) -> Any:
    if not config.share_all_embeddings:  # Flax has one table, and wants them equal
        params = {**params, "decoder/embed_tokens": params["encoder/embed_tokens"]}
    body, _ = stored_tensors(config, params, {}, None)
    with_head, _ = stored_tensors(config, params, heads, HEAD)
    tensors = flax_tensors(config, {**body, **with_head})
    return {name: make() for name, make in tensors.items()}


def _per_head(config: BARTConfig, params: Params, heads: dict[str, HeadFiles]) -> Any:
    body, _ = stored_tensors(config, params, {}, None)
    flat: dict[str, np.ndarray] = {}

    def walk(tree: Any, where: str) -> None:
        if isinstance(tree, Mapping | list):
            pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
            for name, value in pairs:
                walk(value, f"{where}/{name}" if where else str(name))
        else:
            flat[where] = tree()

    walk(per_head_tree(config, body), "")
    return flat


LAYOUTS = [
    Layout("bart_hk", _ours),
    Layout("fairseq", _fairseq),
    Layout("HF torch", _torch),
    Layout("HF Flax", _flax),
    Layout("bart-base-jax", _per_head),
]


def numbered(config: BARTConfig) -> tuple[Params, dict[str, HeadFiles]]:
    """Parameters of the right shapes and a head's, each full of a number of its own, which takes no
    memory."""
    count = iter(range(1, 100_000))

    def stub(shape: tuple[int, ...]) -> np.ndarray:
        return np.broadcast_to(np.float32(next(count)), shape)

    shapes = parameter_shapes(config)
    params = {p: {n: stub(s) for n, s in leaves.items()} for p, leaves in shapes.items()}
    width = config.encoder_embed_dim
    head = {
        "dense": {"w": stub((width, width)), "b": stub((width,))},
        "out_proj": {"w": stub((width, 3)), "b": stub((3,))},
    }
    return params, {HEAD: HeadFiles(head)}


def places(layout: Layout, config: BARTConfig) -> dict[int, Shapes]:
    """Number of a parameter -> the names under which the layout has it, with their shapes."""
    found: dict[int, Shapes] = {}
    for name, array in layout.tensors(config, *numbered(config)).items():
        if array.ndim and name.split(".")[-1] != "version":
            number = int(array[(0,) * array.ndim])
            found.setdefault(number, {})[name] = array.shape
    return found


def _is_other_layer(name: str) -> bool:
    return re.search(r"layers[_./]?[1-9]|layers/[1-9]", name) is not None


def _shown(entries: Shapes | None) -> str:
    """The names in a cell; a layer's number is N, and a shape is given once."""
    if not entries:
        return ""
    named = [re.sub(r"(layers[_./])0", r"\1N", name) for name in entries]
    shape = "x".join(map(str, next(iter(entries.values()))))
    return "<br>".join(f"`{name}`" for name in named) + f" {shape}"


def table(config: BARTConfig, keep: Callable[[str], bool] = lambda name: True) -> list[str]:
    """The rows of the parameters whose name with us `keep` wants, as Markdown."""
    columns = [places(layout, config) for layout in LAYOUTS]
    lines = [
        "| " + " | ".join(layout.title for layout in LAYOUTS) + " |",
        "|" + "---|" * len(LAYOUTS),
    ]
    for number, ours in columns[0].items():
        name = next(iter(ours))
        if not _is_other_layer(name) and keep(name):
            lines.append("| " + " | ".join(_shown(c.get(number)) for c in columns) + " |")
    return lines


def page() -> str:
    base = architecture("bart_base")
    bias = base.replace(final_logits_bias=True)
    untied = base.replace(share_all_embeddings=False, share_decoder_input_output_embed=False)
    mbart = base.replace(encoder_normalize_before=True, decoder_normalize_before=True)
    plain = set(_ours(base, *numbered(base)))
    head = [name for name in plain if name.startswith("classification_heads")]

    def new(name: str) -> bool:
        return name not in plain

    sections = {
        "A tied BART": table(base, lambda name: name not in head),
        "A classification head": table(base, lambda name: name in head),
        "Untied: two tables and an output projection": table(untied, new),
        "mBART: a layer norm at each end": table(mbart, new),
        "A bias of the logits": table(bias, new),
    }
    remarks = {
        "A classification head": "HF's classes have one head, without a name; fairseq's and ours "
        "may have several. The file of bart-base-jax has none.",
        "Untied: two tables and an output projection": "HF Flax has one table for source and "
        "target, so only a model in which they are equal can be written there.",
        "mBART: a layer norm at each end": "bart-base-jax has no such model; it is refused.",
        "A bias of the logits": "fairseq and bart-base-jax have none; a model with one that is "
        "not zero is refused. HF's files hold zeros where a model of ours has none.",
    }
    parts = [INTRODUCTION]
    for title, lines in sections.items():
        remark = f"{remarks[title]}\n\n" if title in remarks else ""
        parts.append(f"## {title}\n\n{remark}" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    text = page()
    if not args.check:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE} is not up to date: run python tools/parameter_layouts.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
