"""`TextEncoder`: a BPE and a dictionary together, between text and the ids of a model."""

import copy
import itertools
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Protocol

import numpy as np

from bart_hk.text import directory as directory_files
from bart_hk.text.dictionary import Dictionary
from bart_hk.text.fairseq_folder import Saved, misfit, written_symbols
from bart_hk.text.gpt2_bpe import GPT2_SIZES, gpt2_bpe, gpt2_dictionary

_SOURCE = "source_tokenizer"  # a folder beside the files of the model's own


class BPE(Protocol):
    """What cuts a text into symbols of a dictionary."""

    symbols: list[str]  # of every index that `indices` gives

    def indices(self, texts: Sequence[str]) -> list[list[int]]: ...

    def encode(self, text: str) -> str: ...

    def decode(self, symbols: str) -> str: ...

    def join(self, symbols: Iterable[str]) -> str: ...


class TextEncoder:
    """Text to ids and back, without the special symbols that frame a sentence.

    Special symbols written in a text (`<s>`, `<mask>`, `</s>`) are ordinary characters, as in
    fairseq. What the dictionary lacks becomes `<unk>`; the dictionary never grows.

    Attributes:
      bpe: between text and symbols (`encode(str) -> str`, `decode(str) -> str`).
      dictionary: between symbols and ids; it also knows the special ids.
      mask: the symbol that stands for hidden text.
      tokenizer_class: the transformers class that opens what `save` writes.
      source: the encoder of what the model reads, where that has a vocabulary of its own; else
        None. `for_sources` is one or the other.
    """

    source: "TextEncoder | None" = None

    def __init__(
        self,
        bpe: BPE,
        dictionary: Dictionary,
        mask: str = "<mask>",
        tokenizer_class: str = "BartTokenizer",
    ):
        self.bpe = bpe
        self.dictionary = dictionary
        self.mask = mask
        self.tokenizer_class = tokenizer_class
        unknown = -1 if dictionary.unk_index is None else dictionary.unk_index
        # The id of every index that the BPE gives.
        self._ids = np.array([dictionary.indices.get(s, unknown) for s in bpe.symbols], np.int32)

    @classmethod
    def gpt2(cls, layout: str = "bart.large") -> "TextEncoder":
        """The published BARTs' encoder, shipped with the package.

        Layout "bart.large" has 50265 symbols, the last one `<mask>` = 50264; "bart.base" has 51201,
        `<mask>` = 51200.
        """
        return cls(gpt2_bpe(), gpt2_dictionary(layout))

    @classmethod
    def load(
        cls,
        directory: str | PathLike,
        languages: Sequence[str] | None = None,
        bpe_directory: str | PathLike | None = None,
        bpe_files: Sequence[str | PathLike] = (),
    ) -> "TextEncoder":
        """The encoder whose files are in a model's directory, fairseq's or Hugging Face's.

        Args:
          directory: of the model; or a data folder of fairseq's, with `dict.txt`, `dict.LANG.txt`
            (which must agree) or `input0/dict.txt`.
          languages: for a fairseq checkpoint, which cannot do without a dictionary: the languages
            whose symbols (`[en_XX]` for "en_XX") come between the dictionary's and `<mask>`, most
            often none.
          bpe_directory: where the BPE files of a dictionary are if they are not beside it: the
            model's directory, for a data folder.
          bpe_files: instead of those in any directory: vocabulary and merges of a byte-level BPE,
            or a SentencePiece model.

        Raises FileNotFoundError, naming what was looked for, where there are none, and ValueError
        where they are damaged or do not belong together.
        """
        made = cls(*directory_files.load(directory, languages, bpe_directory, bpe_files))
        of_sources = Path(directory) / _SOURCE
        if of_sources.is_dir():
            made.source = cls(*directory_files.load(of_sources))
        return made

    @property
    def for_sources(self) -> "TextEncoder":
        """What encodes the texts that the model reads."""
        return self if self.source is None else self.source

    def with_source(self, source: "TextEncoder") -> "TextEncoder":
        """This encoder beside another one for what the model reads.

        Raises ValueError unless `<s>`, `<pad>` and `</s>` have the same ids in both.
        """
        mine, theirs = (
            (d.bos_index, d.pad_index, d.eos_index) for d in (self.dictionary, source.dictionary)
        )
        if mine != theirs:
            raise ValueError(
                f"<s>, <pad> and </s> are {theirs} in the tokenizer of the sources and {mine} in "
                "the model's: make one with the same (task.source_vocab_size does)"
            )
        both = copy.copy(self)
        both.source = source
        return both

    def save(self, directory: str | PathLike, model_max_length: int | None = None) -> None:
        """Writes the files from which `load` and transformers make the same encoder again.

        `model_max_length` is what transformers truncates to when it is asked to truncate.
        """
        directory_files.save(self._parts(), directory, model_max_length)
        if self.source is not None:
            folder = Path(directory) / _SOURCE
            folder.mkdir(exist_ok=True)
            self.source.save(folder, model_max_length)

    def save_fairseq(self, directory: str | PathLike, rows: int | None = None) -> Saved:
        """Writes the files from which the real fairseq, and `load`, make the same encoder again.

        `rows` is the number of embeddings of the model, that of the symbols by default.

        Raises ValueError where fairseq has no such tokenizer: its dictionaries begin with
        `<s> <pad> </s> <unk>`, and its BPE is byte-level or SentencePiece.
        """
        size = len(self.dictionary) if rows is None else rows
        return directory_files.save_fairseq(self._parts(), Path(directory), size)

    @property
    def fairseq_symbols(self) -> list[str]:
        """The dictionary's symbols as `save_fairseq` writes them."""
        return written_symbols(self.bpe, self.dictionary)

    def _parts(self) -> directory_files.Tokenizer:
        return directory_files.Tokenizer(self.bpe, self.dictionary, self.mask, self.tokenizer_class)

    def fit(self, vocab_size: int, exact: bool = False) -> "TextEncoder":
        """This encoder for a model with so many embedding rows, checked.

        A model may lack the row of a final `<mask>` (fine-tuned for translation or summaries): then
        the encoder has none either. Rows beyond the symbols are padding, unless `exact`: fairseq
        pads no embeddings, so a dictionary that is too short there has its `<mask>` elsewhere.

        Raises ValueError where a symbol has no row, or where bart.large's dictionary comes with
        fairseq's bart.base, whose `<mask>` is another row; says both sizes and the likely reason.
        """
        size = len(self.dictionary)
        if size == vocab_size + 1 and self.dictionary[vocab_size] == self.mask:
            fitted = copy.copy(self)
            fitted.dictionary = self.dictionary.without_last()
            return fitted
        large_for_base = (size, self.mask_id, vocab_size) == (
            GPT2_SIZES["bart.large"],
            GPT2_SIZES["bart.large"] - 1,
            GPT2_SIZES["bart.base"],
        )
        if size > vocab_size or large_for_base or (exact and size != vocab_size):
            raise ValueError(misfit(size, vocab_size))
        return self

    def insert_symbols(self, names: Sequence[str], before_mask: bool = True) -> "TextEncoder":
        """An encoder with more special symbols, before `<mask>` or at the end.

        Like `<mask>`, they are not read from text, only written (`dictionary.index` gives the ids).
        `bart_hk.checkpoint.resize.insert_symbols` gives the model their embeddings.

        Raises ValueError for a symbol that is there already.
        """
        old = self.dictionary
        for name in names:
            if name in old or list(names).count(name) > 1:
                raise ValueError(f"the symbol {name!r} cannot be added: it is there already")
        at = self.mask_id if before_mask and self.mask_id is not None else len(old)
        words = {name: getattr(old, f"{name}_word") for name in ("bos", "pad", "eos", "unk")}
        symbols = [*old.symbols[:at], *names, *old.symbols[at:]]
        dictionary = Dictionary.from_symbols(symbols, **words)
        dictionary.count = [*old.count[:at], *[1] * len(names), *old.count[at:]]
        made = TextEncoder(self.bpe, dictionary, self.mask, self.tokenizer_class)
        made.source = self.source
        return made

    @property
    def mask_id(self) -> int | None:
        """The id of `<mask>`, or None where the vocabulary has none."""
        return self.dictionary.indices.get(self.mask)

    def encode(self, text: str) -> list[int]:
        """The ids of one text; [] for an empty one.

        Raises TypeError for what is not a string, ValueError for one that is not Unicode text
        (it holds a lone surrogate), or where `<unk>` is needed and the vocabulary has none.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text. Errors are those of `encode`."""
        ids, lengths = self.encode_flat(texts)
        flat = ids.tolist()
        encoded, start = [], 0
        for length in lengths.tolist():
            encoded.append(flat[start : start + length])
            start += length
        return encoded

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts, end to end, int32 [N], and their numbers, int64 [len(texts)].

        Errors are those of `encode`.
        """
        if isinstance(texts, str):
            raise TypeError("encode_batch takes a list of texts; use encode for a single one")
        texts = list(texts)
        for number, text in enumerate(texts):
            _check_text(text, number)
        if not texts:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        rows = self.bpe.indices(texts)
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        flat = np.fromiter(itertools.chain.from_iterable(rows), np.int64, int(lengths.sum()))
        ids = self._ids[flat]
        if ids.size and ids.min() < 0:
            raise ValueError(
                "a text holds characters outside the vocabulary, which has no "
                f"{self.dictionary.unk_word!r} to stand for them"
            )
        return ids, lengths

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids [T]: `<s>`, `</s>` and padding are left out, as nothing else is.

        `<mask>`, `<unk>` and fairseq's fillers ("madeupword0003") stay, as written. Ids outside the
        dictionary read `<unk>`.
        """
        dictionary = self.dictionary
        dropped = (dictionary.bos_index, dictionary.eos_index, dictionary.pad_index)
        array = np.asarray(ids, np.int64)
        if array.ndim != 1:
            raise ValueError(f"decode takes the ids of one text, not an array of {array.shape}")
        symbols = [dictionary[index] for index in array.tolist() if index not in dropped]
        return self.bpe.join(symbols)

    def spellings(self) -> list[bytes]:
        """Of each id what it adds to the text that `decode` gives, as UTF-8.

        Raises:
            ValueError: the text of ids is not that of each of them, one after the other.
        """
        spelling = getattr(self.bpe, "spelling", None)
        if spelling is None:
            raise ValueError(
                f"a {type(self.bpe).__name__} cannot tell what an id adds to a text; GPT-2's "
                "byte-level BPE and SentencePiece can"
            )
        dictionary = self.dictionary
        dropped = (dictionary.bos_index, dictionary.eos_index, dictionary.pad_index)
        return [
            b"" if index in dropped else spelling(dictionary[index])
            for index in range(len(dictionary))
        ]


def _check_text(text: object, number: int) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text {number} is a {type(text).__name__}, not a str: {text!r:.80}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text {number} holds the lone surrogate {text[error.start]!r} at {error.start}, which "
            f"is no character; read it with errors='replace' or remove it"
        ) from None
