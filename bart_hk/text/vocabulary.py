"""Making a vocabulary of one's own."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from bart_hk.text.dictionary import Dictionary
from bart_hk.text.encoder import TextEncoder
from bart_hk.text.gpt2_bpe import BYTE_ALPHABET, GPT2BPE

_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")


def train_bpe(texts: Iterable[str], vocab_size: int) -> TextEncoder:
    """Learns a byte-level BPE from texts; the same texts give the same encoder.

    Args:
      texts: what the vocabulary is for.
      vocab_size: symbols at most, among them `<s> <pad> </s> <unk>` with the ids 0 to 3, the 256
        bytes (so that any text can be encoded) and, last, `<mask>`. Texts with little variety give
        fewer.

    Raises:
      ValueError: `vocab_size` leaves no room for those.
    """
    fixed = len(_SPECIALS) + len(BYTE_ALPHABET) + 1
    if vocab_size < fixed:
        raise ValueError(f"vocab_size {vocab_size} is too small: at least {fixed} are needed")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(_SPECIALS) - 1,
        initial_alphabet=list(BYTE_ALPHABET.values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    learnt = sorted(model["vocab"], key=model["vocab"].__getitem__)
    bpe = GPT2BPE({token: token for token in learnt}, [tuple(pair) for pair in model["merges"]])
    return TextEncoder(bpe, Dictionary.from_symbols([*_SPECIALS, *learnt, "<mask>"]))
