"""The dictionaries and BPE files beside a fairseq checkpoint, read and written.

Sources: fairseq `hub_utils.py` (file names); `tasks/denoising.py`, `tasks/translation.py`,
`tasks/sentence_prediction.py` (which dictionary is read, and from where);
`tasks/multilingual_denoising.py`, `tasks/translation_from_pretrained_bart.py` (what they add).
"""

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from bart_hk.text.dictionary import Dictionary
from bart_hk.text.gpt2_bpe import BYTE_ALPHABET, GPT2_SIZES, GPT2BPE
from bart_hk.text.sentencepiece import PLBART_LANGUAGES, SHIFTED_LAYOUTS, SentencePieceBPE

MASK = "<mask>"
LABELS = Path("label", "dict.txt")
# What `save_fairseq` may write: the dictionaries and every BPE file that `load` could prefer.
FILES = (
    "dict.txt",
    "dict.source.txt",
    "dict.target.txt",
    "input0/dict.txt",
    str(LABELS),
    "encoder.json",
    "vocab.bpe",
    "sentencepiece.bpe.model",
    "sentence.bpe.model",
    "tokenizer_config.json",
)
_NAMES = "dict.txt, dict.source.txt and dict.target.txt, input0/dict.txt"
_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")


class Saved(NamedTuple):
    """What the arguments of a checkpoint have to say about the dictionary beside it."""

    languages: list[str]  # their symbols follow the dictionary's, `[en_XX]` for "en_XX"
    masks: bool  # whether there is a `<mask>`


def find_dictionary(directory: Path) -> Path | None:
    """The dictionary in a model's or a data folder; None where there is none.

    Raises:
        ValueError: those of the source and of the target language differ.
    """
    if (directory / "dict.txt").is_file():
        return directory / "dict.txt"
    by_language = sorted(directory.glob("dict.*.txt"))
    if by_language:
        # The source's first, as everything else is found beside it.
        first = directory / "dict.source.txt"
        first = first if first in by_language else by_language[0]
        for other in by_language:
            _check_agreement(first, other)
        return first
    data = directory / "input0" / "dict.txt"
    return data if data.is_file() else None


def _check_agreement(one: Path, other: Path) -> None:
    if one == other or one.read_bytes() == other.read_bytes():
        return
    first, second = Dictionary.load(one), Dictionary.load(other)
    pairs = itertools.zip_longest(first.symbols, second.symbols)
    for index, (mine, yours) in enumerate(pairs):  # counts may differ
        if mine != yours:
            raise ValueError(
                f"{one} and {other.name} disagree: id {index} is {mine!r} in the first and "
                f"{yours!r} in the second, but a BART has one vocabulary; save the dictionary that "
                "it was trained with as dict.txt"
            )


def load_dictionary(file: Path, languages: Iterable[str] = (), mask: bool = True) -> Dictionary:
    """A dictionary with the symbols that fairseq's tasks add: languages, then `<mask>`."""
    dictionary = Dictionary.load(file)
    symbols = [code if code.startswith(("[", "__")) else f"[{code}]" for code in languages]
    for symbol in [*symbols, *([MASK] if mask else [])]:
        if symbol not in dictionary:
            dictionary.add_symbol(symbol)
    return dictionary


def missing_dictionary(directory: Path) -> FileNotFoundError:
    """The error for a checkpoint without a dictionary."""
    return FileNotFoundError(
        f"no dictionary in {directory} (looked for {_NAMES}): a fairseq checkpoint needs the "
        "dict.txt of its archive or its data folder beside it, or data_name_or_path=FOLDER"
    )


def read_labels(directory: str | PathLike) -> list[str] | None:
    """The names of the classes, from `label/dict.txt` of a data folder; None where there is none.

    Raises:
        ValueError: the file is no dictionary.
    """
    file = Path(directory) / LABELS
    if not file.is_file():
        return None
    dictionary = Dictionary.load(file)
    symbols = dictionary.symbols[dictionary.nspecial :]
    # fairseq-preprocess fills a dictionary up to a multiple of eight.
    return [symbol for symbol in symbols if not re.fullmatch(r"madeupword\d{4}", symbol)]


def read_languages(directory: Path, name: str) -> list[str] | None:
    """The languages in a file that lists them, such as mBART-50's; None where there is none."""
    for file in (directory / Path(name).name, directory / "ML50_langs.txt"):
        if name and file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            return [line.strip() for line in lines if line.strip()]
    return None


def misfit(symbols: int, rows: int) -> str:
    """Why a dictionary of so many symbols may not fit a model with so many embeddings."""
    layouts = {size - less: name for name, size in GPT2_SIZES.items() for less in (0, 1)}
    message = f"the dictionary has {symbols} symbols, but the model has embeddings for {rows}: "
    if {layouts.get(symbols), layouts.get(rows)} == set(GPT2_SIZES):
        return message + (
            f"it has {layouts[symbols]}'s layout and the model {layouts[rows]}'s, so it needs the "
            f"dict.txt of {layouts[rows]}'s own archive"
        )
    if rows > symbols:
        return message + (
            "its end is missing, or the languages of a multilingual model, which their list "
            "(languages=[...]) adds; give the model the dictionary that it was trained with"
        )
    return message + "give the model the dictionary and tokenizer files that it was trained with"


# --- Writing --------------------------------------------------------------------------------------


def save_fairseq(
    directory: Path,
    bpe: Any,
    dictionary: Dictionary,
    mask: str,
    settings: dict[str, Any],
    rows: int,
) -> Saved:
    """Writes the dictionary and the BPE files under the names that fairseq reads.

    fairseq's symbols of a byte-level BPE are decimal numbers: here the ids, where a token is its
    own symbol. `settings` (`tokenizer_config.json`), with what says so, lets `load` undo that.

    Args:
        rows: embeddings of the model; rows without a symbol get fillers, which stay.

    Raises:
        ValueError: fairseq has no such tokenizer or no such dictionary.
    """
    if dictionary.nspecial < len(_SPECIALS):
        raise ValueError(
            f"the vocabulary begins with {dictionary.symbols[:4]}, fairseq's dictionaries with "
            "<s> <pad> </s> <unk>"
        )
    size = len(dictionary)
    if size > rows:
        raise ValueError(misfit(size, rows))
    symbols = list(dictionary.symbols)
    masks = rows == size and symbols[-1] == mask
    end = size - masks
    codes: list[str] = []
    if masks:
        codes = _languages(symbols[4:end])
        end -= len(codes)
    about: dict[str, Any] = {}
    if isinstance(bpe, GPT2BPE):
        vocabulary = _decimals(bpe, dictionary)
        _write_byte_level(directory, bpe, vocabulary or bpe.tokens)
        if vocabulary:
            symbols = written_symbols(bpe, dictionary)
            about |= {"decimals": True, "tokens": len(bpe.tokens)}
    elif isinstance(bpe, SentencePieceBPE):
        (directory / "sentencepiece.bpe.model").write_bytes(bpe.model)
    else:
        raise ValueError(f"fairseq has no tokenizer of the kind of {type(bpe).__name__}")
    lines = [
        f"{MASK if symbol == mask else symbol} {count}\n"
        for symbol, count in zip(symbols[4:end], dictionary.count[4:end], strict=True)
    ]
    lines += [f"madeupword{index:04d} 0\n" for index in range(size, rows)]
    has_mask = mask in dictionary
    names = ["dict.txt"] if has_mask else ["dict.source.txt", "dict.target.txt"]
    for name in names:
        (directory / name).write_text("".join(lines), encoding="utf-8", newline="\n")
    plain = [code for code in codes if not code.startswith("[")]
    about["plain_languages"] = bool(plain)
    content = json.dumps({**settings, "fairseq": about}, indent=2, ensure_ascii=False)
    (directory / "tokenizer_config.json").write_text(content + "\n", encoding="utf-8")
    return Saved([code.strip("[]") for code in codes], has_mask)


def _languages(symbols: Sequence[str]) -> list[str]:
    """The languages' symbols at the end of a dictionary, `[en_XX]` or as mBART's tokenizers say."""
    every = (*SHIFTED_LAYOUTS.values(), *PLBART_LANGUAGES.values())
    named = {code for codes in every for code in codes}
    bracketed = list(itertools.takewhile(lambda s: re.fullmatch(r"\[\w+\]", s), reversed(symbols)))
    plain = list(itertools.takewhile(named.__contains__, reversed(symbols)))
    return max(bracketed, plain, key=len)[::-1]


def written_symbols(bpe: Any, dictionary: Dictionary) -> list[str]:
    """A dictionary's symbols as `save_fairseq` writes them."""
    decimals = _decimals(bpe, dictionary) if isinstance(bpe, GPT2BPE) else {}
    return [decimals.get(symbol, symbol) for symbol in dictionary.symbols]


def _decimals(bpe: GPT2BPE, dictionary: Dictionary) -> dict[str, str]:
    """A decimal symbol for every token, and for every byte: fairseq's BPE needs them all.

    Nothing where the symbols are numbers already, as GPT-2's are.
    """
    if any(token != symbol for token, symbol in bpe.tokens.items()):
        return {}
    # Numbers that the dictionary does not list are read as <unk>.
    beyond = itertools.count(len(dictionary))
    tokens = dict.fromkeys([*bpe.tokens, *BYTE_ALPHABET.values()])
    return {token: str(dictionary.indices.get(token) or next(beyond)) for token in tokens}


def _write_byte_level(directory: Path, bpe: GPT2BPE, vocabulary: Mapping[str, str]) -> None:
    numbers = {token: int(symbol) for token, symbol in vocabulary.items()}
    content = json.dumps(numbers, ensure_ascii=False, separators=(",", ":"))
    (directory / "encoder.json").write_text(content, encoding="utf-8")
    merges = "".join(f"{first} {second}\n" for first, second in bpe.merges)
    (directory / "vocab.bpe").write_text("#version: 0.2\n" + merges, encoding="utf-8")


def restore(
    about: dict[str, Any], settings: dict[str, Any], bpe: Any, dictionary: Dictionary
) -> tuple[Any, Dictionary]:
    """What `save_fairseq` was given, from what it wrote and `load_dictionary` read."""
    symbols = list(dictionary.symbols)
    if about.get("decimals") and isinstance(bpe, GPT2BPE):
        token_of = {symbol: token for token, symbol in bpe.tokens.items()}
        symbols = [token_of.get(symbol, symbol) for symbol in symbols]
        own = {token: token for token in list(bpe.tokens)[: int(about.get("tokens", 0)) or None]}
        bpe = GPT2BPE(own, bpe.merges, add_prefix_space=bool(settings.get("add_prefix_space")))
    if about.get("plain_languages"):
        symbols = [s.strip("[]") if re.fullmatch(r"\[\w+\]", s) else s for s in symbols]
    words = {}
    for index, name in enumerate(("bos", "pad", "eos", "unk")):
        word = settings.get(f"{name}_token")
        words[name] = word if isinstance(word, str) else symbols[index]
        symbols[index] = words[name]
    mask = settings.get("mask_token")
    if isinstance(mask, str):
        symbols = [mask if symbol == MASK else symbol for symbol in symbols]
    restored = Dictionary.from_symbols(symbols, **words)
    restored.count = list(dictionary.count)
    return bpe, restored


def save_labels(directory: Path, labels: Sequence[str], dictionary: Path | None) -> None:
    """Writes `label/dict.txt`, and the input's dictionary where fairseq's task looks for it.

    Raises:
        ValueError: a label that cannot stand on a line of a dictionary.
    """
    written = Dictionary()
    for label in labels:
        if "\n" in label or label in written:
            raise ValueError(f"the label {label!r} cannot be written into a fairseq dictionary")
        written.add_symbol(label)
    (directory / LABELS).parent.mkdir(exist_ok=True)
    written.save(directory / LABELS)
    if dictionary is not None:
        (directory / "input0").mkdir(exist_ok=True)
        (directory / "input0" / "dict.txt").write_bytes(dictionary.read_bytes())
