"""Making a vocabulary of one's own."""

import io
import json
from collections.abc import Iterable

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from bart_hk.text.dictionary import Dictionary
from bart_hk.text.encoder import TextEncoder
from bart_hk.text.gpt2_bpe import BYTE_ALPHABET, GPT2BPE
from bart_hk.text.sentencepiece import FAIRSEQ_IDS, SentencePieceBPE
from bart_hk.text.tokenizer_json import FAST_CLASS, TokenizerJSON

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


def train_characters(texts: Iterable[str]) -> TextEncoder:
    """A vocabulary of the characters of texts; others become `<unk>`.

    Symbols are `<s> <pad> </s> <unk>` with the ids 0 to 3, the characters in Unicode's order and,
    last, `<mask>`. transformers opens what it saves as a PreTrainedTokenizerFast.

    Raises:
      ValueError: there is no text.
    """
    characters = sorted(set().union(*texts))
    if not characters:
        raise ValueError("there is no text to take characters from")
    symbols = [*_SPECIALS, *characters, "<mask>"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    bpe = TokenizerJSON(tokenizer.to_str())
    return TextEncoder(bpe, Dictionary.from_symbols(symbols), tokenizer_class=FAST_CLASS)


def train_sentencepiece(
    texts: Iterable[str], vocab_size: int, *, byte_fallback: bool = True
) -> TextEncoder:
    """Learns a SentencePiece model (unigram) from texts; the same texts give the same encoder.

    Args:
      texts: what the vocabulary is for. All of them are looked at; beyond some ten million
        characters the result hardly changes.
      vocab_size: symbols at most, among them `<s> <pad> </s> <unk>` with the ids 0 to 3 and, last,
        `<mask>`. Texts with little variety give fewer.
      byte_fallback: 256 pieces for bytes, so that no character is unknown.

    Raises:
      ValueError: there is no text, or `vocab_size` leaves no room for its characters.
    """
    fixed = len(_SPECIALS) + len(BYTE_ALPHABET) * byte_fallback + 1
    if vocab_size <= fixed:
        raise ValueError(f"vocab_size {vocab_size} is too small: more than {fixed} are needed")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            # Three of the special symbols are its own; one, and <mask>, are not.
            vocab_size=vocab_size - 2,
            hard_vocab_limit=False,
            byte_fallback=byte_fallback,
            max_sentence_length=1 << 20,  # bytes; longer ones would be left out
            num_threads=8,  # what is added up in which order depends on it
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition("] ")[2] or "there is no text"
        raise ValueError(f"no SentencePiece model of {vocab_size} symbols: {reason}") from None
    bpe = SentencePieceBPE(model.getvalue())
    dictionary = Dictionary()
    for piece in [*bpe.symbols[3:], "<mask>"]:
        dictionary.add_symbol(piece)
    return TextEncoder(bpe, dictionary, tokenizer_class=FAIRSEQ_IDS)
