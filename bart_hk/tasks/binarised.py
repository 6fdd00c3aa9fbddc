"""The folders of fairseq's sentence_prediction: `input0`, `input1` and `label`, binarised.

    FOLDER/input0/train.bin, train.idx, dict.txt     and input1 for the second of a pair
    FOLDER/label/train.bin, train.idx, dict.txt      or train.label for numbers, one on a line

Source: fairseq `tasks/sentence_prediction.py`, `load_dataset`.
"""

from pathlib import Path
from typing import Any

from bart_hk.data.readers import DataError, Examples, read_lines
from bart_hk.data.store import TokenStore, store_exists
from bart_hk.tasks.files import VALID_NAMES, find_table
from bart_hk.text import Dictionary, TextEncoder


def is_binarised(folder: Path) -> bool:
    """Whether it is such a folder."""
    return (folder / "input0").is_dir()


def splits(folder: Path) -> tuple[Path, Path | None]:
    """FOLDER/train and FOLDER/valid, which `read_binarised` takes.

    Raises:
        DataError: there is no train, or a table, too.
    """
    if not store_exists(folder / "input0" / "train"):
        raise DataError(
            f"task.data={folder} has no input0/train.bin and train.idx; fairseq-preprocess makes "
            "them"
        )
    if table := find_table(folder, ("train",)):
        raise DataError(
            f"task.data={folder} has {table.name} and input0; name the file to learn from in "
            "task.train, or move it elsewhere"
        )
    there = (name for name in VALID_NAMES if store_exists(folder / "input0" / name))
    valid = next(there, None)
    return folder / "train", folder / valid if valid else None


def binarised_files(path: Path) -> list[Path]:
    """What `read_binarised` reads of a split."""
    folders = (path.parent / name for name in ("input0", "input1", "label"))
    return sorted(file for folder in folders for file in folder.glob(f"{path.name}.*"))


def read_binarised(path: Path, regression: bool) -> Examples:
    """A split, FOLDER/train: its `texts` are tuples of ids, int32 [N] without `</s>`.

    Raises:
        DataError: a store is missing or damaged, or they have different lengths.
    """
    folder, split = path.parent, path.name
    names = tuple(n for n in ("input0", "input1") if store_exists(folder / n / split))
    inputs = [TokenStore(folder / name / split) for name in names]
    labels = _numbers(folder, split) if regression else _classes(folder, split)
    for name, store in zip(names, inputs, strict=True):
        if len(store) != len(labels):
            raise DataError(
                f"{folder}: {name}/{split} has {len(store)} rows and label/{split} {len(labels)}; "
                "binarise them again from files of the same length"
            )
    # Every row ends with </s>, which the frame puts there again.
    texts = [tuple(store[i][:-1].tolist() for store in inputs) for i in range(len(labels))]
    return Examples(path, names, "label", texts, labels, list(range(1, len(labels) + 1)))


def ids_of(encoder: TextEncoder, texts: list[Any]) -> list[list[int]]:
    """Of texts, or of what is ids already: a list for each.

    Raises:
        DataError: there are ids that the tokenizer does not have.
    """
    if all(isinstance(text, str) for text in texts):
        return encoder.encode_batch(texts)
    highest = max((max(ids, default=0) for ids in texts), default=0)
    if highest >= len(encoder.dictionary):
        raise DataError(
            f"the data hold the id {highest}, and the model's tokenizer has "
            f"{len(encoder.dictionary)} symbols: they were made with another vocabulary"
        )
    return texts


def _classes(folder: Path, split: str) -> list[str]:
    if not (folder / "label" / "dict.txt").is_file():
        raise DataError(
            f"{folder} has no label/dict.txt; for numbers set criterion.regression_target=true"
        )
    dictionary = Dictionary.load(folder / "label" / "dict.txt")
    store = TokenStore(folder / "label" / split)
    store.check_vocabulary(len(dictionary), f"{folder / 'label' / 'dict.txt'}")
    return [dictionary[int(store[i][0])] for i in range(len(store))]


def _numbers(folder: Path, split: str) -> list[str]:
    return [line.strip() for line in read_lines(folder / "label" / f"{split}.label")]
