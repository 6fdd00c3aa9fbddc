"""Data folders: shards of them, the stores in each, and their tokenizer.

Sources: fairseq `tasks/denoising.py` (shards), `tasks/multilingual_denoising.py` (a folder for each
language).
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from bart_hk.data.preprocessing import unfinished
from bart_hk.data.readers import DataError
from bart_hk.data.store import TokenStore, store_exists
from bart_hk.text import TextEncoder

_log = logging.getLogger(__name__)


def split_shards(data: str) -> list[str]:
    """The folders of "a:b:c"; one with "://" in it is an address, and not split.

    Raises:
        DataError: a name is empty.
    """
    shards = [data] if "://" in data else data.split(os.pathsep)
    if not all(shards):
        raise DataError(f"task.data={data!r} names an empty folder between its {os.pathsep!r}")
    return shards


def shard_of_epoch(shards: Sequence[str], epoch: int) -> str:
    """The shard that epoch 1, 2, ... is trained on: one after the other, and from the start."""
    return shards[(epoch - 1) % len(shards)]


def open_stores(folder: Path, role: str) -> dict[str, TokenStore]:
    """The store of a folder, or those of the folders in it, by their names: {"reviews": ...}.

    Args:
        role: "train" or "valid".

    Raises:
        DataError: `folder` is none, or a store is unfinished or damaged.
    """
    _refuse_unfinished(folder)
    if store_exists(folder / role):
        return {folder.name: TokenStore(folder / role)}
    if not folder.is_dir():
        raise DataError(f"task.data={folder} is not a folder")
    found = {}
    for path in sorted(folder.iterdir()):
        _refuse_unfinished(path)
        if store_exists(path / role):
            found[path.name] = TokenStore(path / role)
    return found


def _refuse_unfinished(folder: Path) -> None:
    if unfinished(folder):
        raise DataError(
            f"task.data: {folder} is not finished; the same bart-hk-preprocess command goes on "
            "with it"
        )


def warn_of_what_is_left_out(shard: Path) -> None:
    """Names the folders in a data folder that nothing is read from, but for hidden ones."""
    own = store_exists(shard / "train")
    inside = (path for path in shard.iterdir() if path.is_dir() and path.name[0] != ".")
    for path in sorted(inside):
        stores = store_exists(path / "train") or store_exists(path / "valid")
        if own and stores:
            _log.warning("%s is left out: task.data=%s has a train.bin itself", path, shard)
        elif not (own or stores):
            _log.warning("%s is left out: it has no train.bin", path)


def find_tokenizer(shard: str, stores: dict[str, TokenStore]) -> str:
    """The first with a tokenizer's files: the folder of the data, or those of the corpora in it."""
    for folder in (Path(shard), *(store.prefix.parent for store in stores.values())):
        try:
            TextEncoder.load(folder)
        except FileNotFoundError:
            continue
        except ValueError:
            pass  # damaged, as who reads it will say
        return str(folder)
    return shard
