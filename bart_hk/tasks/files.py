"""Where the examples of a fine-tuning task are: the options that all of them share."""

import hashlib
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bart_hk.data.readers import COMPRESSIONS, FORMATS, DataError
from bart_hk.text import Dictionary, TextEncoder

CHARACTERS = "characters"  # as a tokenizer: every character of the texts is a symbol
VALID_NAMES = ("valid", "val", "dev")


@dataclass
class FilesConfig:
    """Where the examples are, and the tokenizer of a model that begins from scratch."""

    _name: str = ""
    # A prepared directory: holds train and valid (or val, dev) as .tsv, .csv or .jsonl, .gz or .xz
    # or plain; pkg://PACKAGE/PATH means one in an installed package. Instead of it, the files.
    data: str | None = None
    train: str | None = None
    valid: str | None = None
    # Without checkpoint.restore_file: a name or directory with a tokenizer, "characters" for those
    # of the training texts, or the size of a byte-level BPE to learn from them. Neither: GPT-2's,
    # as published BARTs.
    tokenizer: str | None = None
    vocab_size: int | None = None


def folder_of(config: FilesConfig) -> Path | None:
    """`task.data`, if it is given.

    Raises:
        DataError: it is no directory, or the files are given as well.
    """
    if config.data is None:
        return None
    if config.train or config.valid:
        raise DataError("give task.data or task.train and task.valid, not both")
    folder = _folder(config.data)
    if not folder.is_dir():
        raise DataError(f"task.data={folder} is not a directory; for a file use task.train")
    return folder


def table_files(config: FilesConfig) -> tuple[Path, Path | None]:
    """The tables to train on and to validate on.

    Raises:
        DataError: nothing is given, or nothing is there.
    """
    folder = folder_of(config)
    if folder is None:
        if not config.train:
            raise DataError("task.train is not set; give it a .tsv, .csv or .jsonl file")
        return Path(config.train), Path(config.valid) if config.valid else None
    train = find_table(folder, ("train",))
    if train is None:
        raise DataError(f"task.data={folder} has no train{', train'.join(FORMATS)}")
    return train, find_table(folder, VALID_NAMES)


def find_table(folder: Path, stems: Sequence[str]) -> Path | None:
    """The first table of one of these names."""
    names = (
        f"{stem}{suffix}{packed}"
        for stem in stems
        for suffix in FORMATS
        for packed in ("", *COMPRESSIONS)
    )
    return next((folder / name for name in names if (folder / name).is_file()), None)


def check_vocabulary(where: str, theirs: Dictionary, encoder: TextEncoder) -> None:
    """Makes sure that the ids of data mean what they mean to the model.

    Raises:
        DataError: an id is another symbol in the data's dictionary. What no text gives may differ:
            bart.base has more fillers, mBART languages.
    """
    known = zip(theirs.symbols, encoder.dictionary.symbols, encoder.fairseq_symbols, strict=False)
    for index, (old, *ours) in enumerate(known):
        if old not in ours and not old.startswith(("madeupword", "<mask>")):
            raise DataError(
                f"{where} was made with another vocabulary: id {index} is {old!r} there and "
                f"{ours[0]!r} in the model's tokenizer; make it again with that one"
            )


def check_tokenizer(encoder: TextEncoder, folder: Path) -> None:
    """`check_vocabulary` of the tokenizer beside the stores in a folder, if one is there.

    Raises:
        DataError: it has another vocabulary, or is no tokenizer.
    """
    try:
        theirs = TextEncoder.load(folder).dictionary
    except FileNotFoundError:
        return
    except ValueError as error:
        raise DataError(f"task.data={folder}: {error}") from None
    check_vocabulary(f"task.data={folder}", theirs, encoder)


def check_dictionary(encoder: TextEncoder, *paths: Path) -> None:
    """`check_vocabulary` of the first of these `dict.txt` that is there, if any is.

    Raises:
        DataError: it is another vocabulary, or no dictionary.
    """
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return
    try:
        theirs = Dictionary.load(path)
    except ValueError as error:
        raise DataError(str(error)) from None
    check_vocabulary(str(path), theirs, encoder)


def digest(*paths: Path) -> str:
    """Of the files' contents."""
    found = hashlib.sha256()
    for path in paths:
        found.update(hashlib.sha256(path.read_bytes()).digest() if paths[1:] else path.read_bytes())
    return found.hexdigest()


def _folder(name: str) -> Path:
    if not name.startswith("pkg://"):
        return Path(name)
    package, _, path = name.removeprefix("pkg://").partition("/")
    try:
        return Path(str(importlib.resources.files(package))) / path
    except ModuleNotFoundError:
        raise DataError(f"task.data={name}: there is no package {package}") from None
