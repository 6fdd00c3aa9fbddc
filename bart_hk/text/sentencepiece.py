"""SentencePiece models, and the order in which published BARTs give ids to their pieces.

Sources: fairseq `data/encoders/sentencepiece_bpe.py`; for the layouts without a `dict.txt`, the
tokenizer classes of transformers that `LAYOUTS` names.
"""

import itertools
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

import sentencepiece

from bart_hk.text.dictionary import Dictionary

# fmt: off
_MBART = (
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN",
    "it_IT", "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO",
    "ru_RU", "si_LK", "tr_TR", "vi_VN", "zh_CN",
)
_MBART50 = (
    *_MBART,
    "af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE", "km_KH", "mk_MK",
    "ml_IN", "mn_MN", "mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN", "te_IN",
    "th_TH", "tl_XX", "uk_UA", "ur_PK", "xh_ZA", "gl_ES", "sl_SI",
)
# fmt: on
PLBART = "PLBartTokenizer"
_PLBART = ("__java__", "__python__", "__en_XX__")

# The codes that follow the pieces in the layouts that shift a model's ids to fairseq's four special
# symbols; `<mask>` comes last in all of them.
SHIFTED_LAYOUTS = {
    "MBartTokenizer": _MBART,
    "MBart50Tokenizer": _MBART50,
    "XLMRobertaTokenizer": (),
    PLBART: _PLBART,
}
# PLBart's, by the `language_codes` in its `tokenizer_config.json`.
PLBART_LANGUAGES = {
    "base": _PLBART,
    "multi": (*_PLBART, "__javascript__", "__php__", "__ruby__", "__go__"),
}
# The layout with the ids of the model itself, and the one with those of a fairseq dictionary.
OWN_IDS = "BarthezTokenizer"
FAIRSEQ_IDS = "BartphoTokenizer"


class SentencePieceBPE:
    """A SentencePiece model between text and pieces. `model` is its file or its content."""

    def __init__(self, model: str | PathLike | bytes):
        try:
            self.model = model if isinstance(model, bytes) else Path(model).read_bytes()
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError:
            name = "these bytes" if isinstance(model, bytes) else str(model)
            raise ValueError(f"{name}: not a SentencePiece model, or a damaged one") from None
        self.symbols = [self._processor.id_to_piece(i) for i in range(len(self._processor))]
        # "<0xE2>" for the byte, in models with byte fallback.
        self._bytes = {
            symbol: int(symbol[3:5], 16)
            for i, symbol in enumerate(self.symbols)
            if self._processor.is_byte(i)
        }

    def indices(self, texts: Sequence[str]) -> list[list[int]]:
        """Per text, the positions in `symbols` of its pieces; many texts use all cores."""
        return self._processor.encode(list(texts), out_type=int)

    def encode(self, text: str) -> str:
        """Text to pieces, separated by spaces: "Hello world" to "▁Hello ▁world"."""
        return " ".join(self._processor.encode(text, out_type=str))

    def decode(self, symbols: str) -> str:
        """Pieces, separated by spaces, to text."""
        return self.join(symbols.split(" "))

    def join(self, symbols: Iterable[str]) -> str:
        """Pieces to text, which never starts or ends with white space.

        Pieces for bytes become the characters that they spell, as fairseq's do not; U+FFFD where
        they spell none.
        """
        if self._bytes:
            symbols = self._spelt(symbols)
        return "".join(symbols).replace("\u2581", " ").strip()

    def spelling(self, symbol: str) -> bytes:
        """What a piece adds to a text; one that begins with it has no white space before."""
        if symbol in self._bytes:
            return bytes([self._bytes[symbol]])
        return symbol.replace("\u2581", " ").encode()

    def _spelt(self, symbols: Iterable[str]) -> Iterable[str]:
        for is_byte, group in itertools.groupby(symbols, self._bytes.__contains__):
            if is_byte:
                yield bytes(self._bytes[s] for s in group).decode("utf-8", errors="replace")
            else:
                yield from group

    def is_beginning_of_word(self, symbol: str) -> bool:
        """Whether a piece starts a word; fairseq's special symbols do."""
        return symbol in ("<s>", "<pad>", "</s>", "<unk>") or symbol.startswith("\u2581")

    def dictionary(self, layout: str, languages: Sequence[str] | None = None) -> Dictionary:
        """The ids that a transformers class gives to the pieces.

        `languages` are codes in place of those that the class has by default.

        Raises ValueError for a class that is neither in `SHIFTED_LAYOUTS` nor `OWN_IDS`.
        """
        if layout in SHIFTED_LAYOUTS:
            codes = SHIFTED_LAYOUTS[layout] if languages is None else languages
            specials = ("<s>", "<pad>", "</s>", "<unk>")
            return Dictionary.from_symbols([*specials, *self.symbols[3:], *codes, "<mask>"])
        if layout != OWN_IDS:
            known = ", ".join((*SHIFTED_LAYOUTS, OWN_IDS))
            raise ValueError(
                f"the tokenizer class {layout!r} is not known, so the ids of its pieces are not; "
                f"known are {known}, and a fairseq dict.txt beside the model"
            )
        names = {}
        for name in ("bos", "pad", "eos", "unk"):
            index = getattr(self._processor, f"{name}_id")()
            if index >= 0:
                names[name] = self.symbols[index]
        return Dictionary.from_symbols(self.symbols, **names)
