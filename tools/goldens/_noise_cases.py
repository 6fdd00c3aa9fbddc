"""Rows and options of noise, for fairseq and for us, over `_noise_oracle.dictionary`."""

import random
from typing import Any

VOCAB_SIZE = 60
FULL_STOP = 4 + 13
MASK = VOCAB_SIZE - 1
BOS, EOS = 0, 2

_INFILLING = {"mask": 0.3, "mask_length": "span-poisson", "poisson_lambda": 3.5}
OPTIONS: dict[str, dict[str, Any]] = {
    "token_masking": {"mask": 0.3},
    "token_masking_random": {"mask": 0.4, "mask_random": 0.5},
    "token_deletion": {"mask": 0.3, "replace_length": 0},
    "all_masked": {"mask": 1.0, "mask_random": 0.2},
    "words": {"mask": 0.3, "mask_length": "word", "mask_random": 0.3},
    "words_deleted": {"mask": 0.3, "mask_length": "word", "replace_length": 0},
    "words_token_by_token": {
        "mask": 0.5,
        "mask_length": "word",
        "replace_length": -1,
        "mask_random": 0.5,
    },
    "infilling": {**_INFILLING, "poisson_lambda": 3.0},
    "infilling_deleted": {**_INFILLING, "replace_length": 0, "mask_random": 0.1},
    "infilling_token_by_token": {
        **_INFILLING,
        "mask": 0.6,
        "replace_length": -1,
        "mask_random": 0.4,
    },
    "infilling_short": {**_INFILLING, "mask": 0.9, "poisson_lambda": 0.4, "mask_random": 0.2},
    "insert": {"insert": 0.2, "mask_random": 0.3},
    "rotate": {"rotate": 0.5},
    "permute": {"permute": 0.4},
    "permute_sentences": {"permute_sentences": 1.0},
    "permute_half": {"permute_sentences": 0.5},
    "permute_at_eos": {"permute_sentences": 1.0, "full_stop": EOS},
    "bart": {**_INFILLING, "mask_random": 0.1, "permute_sentences": 1.0},
    "everything": {
        **_INFILLING,
        "mask_random": 0.3,
        "permute_sentences": 0.7,
        "insert": 0.1,
        "rotate": 0.5,
    },
}


def rows(
    rng: random.Random, count: int, longest: int, full_stop: int = FULL_STOP
) -> list[list[int]]:
    """`<s> ... </s>`, from 2 tokens on, with few and many full stops, also one beside the other."""
    found = []
    for _ in range(count):
        stops = rng.choice([0.05, 0.2, 0.5])
        size = rng.randint(0, rng.choice([3, longest, longest]))
        # Also the special symbols inside: <unk>, </s> between sentences.
        inner = [
            full_stop if rng.random() < stops else rng.choice((2, 3, *range(4, MASK)))
            for _ in range(size)
        ]
        found.append([BOS, *inner, EOS])
    return found


def word_starts(rng: random.Random, share: float) -> list[int]:
    return [1 if index < 4 or rng.random() < share else 0 for index in range(VOCAB_SIZE)]


def cases(seed: int, count: int, longest: int) -> list[dict[str, Any]]:
    """For every set of options, `count` rows, with words of about 1, 2 and 10 tokens, or none."""
    rng = random.Random(seed)
    found = []
    for number, (name, options) in enumerate(OPTIONS.items()):
        share = (0.7, 0.5, None, 0.1)[number % 4]
        subword = options.get("mask_length", "subword") == "subword"
        given = rows(rng, count, longest, options.get("full_stop", FULL_STOP))
        if "permute" in options:  # fairseq fails on short ones
            given = [row[:-1] + [7] * 8 + row[-1:] for row in given]
        found.append(
            {
                "name": name,
                "options": options,
                "vocab_size": VOCAB_SIZE,
                "rows": given,
                "word_starts": None if subword or share is None else word_starts(rng, share),
            }
        )
    return found
