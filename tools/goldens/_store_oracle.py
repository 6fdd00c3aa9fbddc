"""The real fairseq's stores and blocks, for the recorder and for live comparisons."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq.data import StripTokenDataset, TokenBlockDataset
from fairseq.data.indexed_dataset import (
    MMapIndexedDataset,
    data_file_path,
    index_file_path,
    make_builder,
    make_dataset,
)

EOS = 2


def random_sizes(rng: random.Random, count: int) -> list[int]:
    """With empty items, items of one token and long ones among them."""
    return [
        rng.choice([0, 1, 1, 2, 3, rng.randint(4, 12), rng.randint(4, 30)]) for _ in range(count)
    ]


def block_cases(seed: int, count: int) -> list[dict[str, Any]]:
    """Sizes, options and fairseq's slices."""
    rng = random.Random(seed)
    found: list[dict[str, Any]] = []
    while len(found) < count:
        sizes = random_sizes(rng, rng.randint(1, 40))
        options = {
            "break_mode": rng.choice(["none", "complete", "complete_doc", "eos"]),
            "block_size": rng.choice([1, 2, 5, 10, 17, 100]),
            "document_sep_len": rng.choice([0, 1]),
        }
        array = np.array(sizes, np.int64)
        try:
            slices = TokenBlockDataset._build_slice_indices(
                array, options["break_mode"], options["document_sep_len"], options["block_size"]
            )[2]
        except (IndexError, ValueError):  # it has no answer where there is no block
            continue
        found.append({"sizes": sizes, **options, "slices": slices.tolist()})
    return found


def write(prefix: Path, items: list[list[int]], impl: str, vocab_size: int) -> None:
    """A store by fairseq's builder."""
    builder = make_builder(data_file_path(str(prefix)), impl, vocab_size)
    for item in items:
        builder.add_item(torch.IntTensor(item))
    builder.finalize(index_file_path(str(prefix)))


def read(prefix: Path, impl: str) -> list[list[int]]:
    """The items of a store as fairseq reads it."""
    store = make_dataset(str(prefix), impl, fix_lua_indexing=True)
    if impl == "cached":
        store.prefetch(range(len(store)))
    return [store[index].tolist() for index in range(len(store))]


def denoising_blocks(prefix: Path, block_size: int, break_mode: str) -> list[list[int]]:
    """The blocks of fairseq's denoising task before `<s>` and `</s>` are put around them."""
    stripped = StripTokenDataset(MMapIndexedDataset(str(prefix)), EOS)
    blocks = TokenBlockDataset(
        stripped,
        stripped.sizes,
        block_size,
        pad=1,
        eos=EOS,
        break_mode=break_mode,
        document_sep_len=0,
    )
    return [blocks[index].tolist() for index in range(len(blocks))]


def denoising_slices(prefix: Path, block_size: int, break_mode: str) -> list[list[int]]:
    """Where those blocks begin and end in the text."""
    stripped = StripTokenDataset(MMapIndexedDataset(str(prefix)), EOS)
    sizes = np.array([len(stripped[index]) for index in range(len(stripped))])
    slices = TokenBlockDataset._build_slice_indices(sizes, break_mode, 0, block_size)[2]
    return slices.tolist()
