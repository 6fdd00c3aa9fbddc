"""Any other tokenizer of the `tokenizers` library, as its `tokenizer.json` describes it."""

import json
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer

FAST_CLASS = "PreTrainedTokenizerFast"  # of transformers, which opens any of them


class TokenizerJSON:
    """The pipeline of a `tokenizer.json` between text and tokens.

    What would change or frame a text is left out: stored truncation and padding, the
    post-processor, and the special tokens, which are ordinary characters when a text holds them.
    """

    def __init__(self, content: str):
        self.content = content
        try:
            description = json.loads(content)
            added = description.get("added_tokens") or []
            description |= {
                "truncation": None,
                "padding": None,
                "post_processor": None,
                "added_tokens": [token for token in added if not token["special"]],
            }
            self._tokenizer = Tokenizer.from_str(json.dumps(description))
        except Exception as error:  # the library has no class of its own for this
            raise ValueError(
                f"tokenizer.json is not of the tokenizers library, or damaged: {error}"
            ) from None
        self.vocabulary = self._tokenizer.get_vocab()
        # A model may still know its special tokens as pieces that a text can hold.
        special = {token["content"] for token in added if token["special"]}
        self.symbols = ["<unk>"] * (max(self.vocabulary.values(), default=-1) + 1)
        for token, index in self.vocabulary.items():
            if token not in special:
                self.symbols[index] = token

    def indices(self, texts: Sequence[str]) -> list[list[int]]:
        """Per text, the positions in `symbols` of its tokens; many texts use all cores."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def encode(self, text: str) -> str:
        """Text to tokens, separated by spaces."""
        return " ".join(self._tokenizer.encode(text).tokens)

    def decode(self, symbols: str) -> str:
        """Tokens, separated by spaces, to text."""
        return self.join(symbols.split(" "))

    def join(self, symbols: Iterable[str]) -> str:
        """Tokens to text, by the tokenizer's decoder; with spaces between them if it has none."""
        decoder = self._tokenizer.decoder
        return " ".join(symbols) if decoder is None else decoder.decode(list(symbols))
