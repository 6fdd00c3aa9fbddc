"""What a user may ask of a search: `GenerationOptions`, under fairseq's names and defaults."""

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class GenerationOptions:
    """Options of greedy (`beam=1`) and beam search.

    Lengths count generated tokens: the forced first token (`<s>`) is one, the decoder's start token
    is not. Source of names, defaults and meaning: fairseq `dataclass/configs.py`,
    `sequence_generator.py`.

    Raises:
        ValueError: a value is out of its range.
    """

    beam: int = 5  # hypotheses kept and returned; at most V - 1, since <pad> is never chosen
    max_len_a: float = 0.0  # a hypothesis has at most int(a * source length + b) tokens and </s>
    max_len_b: int = 200
    min_len: int = 1  # ... and at least this many before </s>
    lenpen: float = 1.0  # score = sum of log probabilities / (tokens with </s>) ** lenpen
    unnormalized: bool = False  # score = sum of log probabilities
    unkpen: float = 0.0  # subtracted from the log probability of <unk>
    temperature: float = 1.0  # divides the logits
    no_repeat_ngram_size: int = 0  # no n-gram of this size twice in a hypothesis; 0: no limit
    # As many tokens as the source, whatever max_len_a and max_len_b say; the closing </s> is free.
    match_source_len: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not _fits(value, field.type):
                kind = getattr(field.type, "__name__", field.type)
                raise ValueError(f"{field.name} must be of type {kind}, not {value!r}")
        for name, least in (("beam", 1), ("min_len", 0), ("no_repeat_ngram_size", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.temperature <= 0:
            raise ValueError(f"temperature must be greater than 0, not {self.temperature}")

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> "GenerationOptions":
        """The options named by `kwargs`, defaults for the rest.

        Raises:
            TypeError: a name is not an option (fairseq takes any name and ignores it).
            ValueError: a value is out of its range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in kwargs:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
                raise TypeError(f"there is no generation option {name!r}; {hint}")
        return cls(**kwargs)

    def length_limits(
        self, source_lengths: Sequence[int], max_target_positions: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The least and greatest number of tokens before `</s>` for each source: int32 [B] each.

        They follow from a row's own length. fairseq takes the padded width of the batch that the
        row happens to be in, so there a result depends on its neighbours.

        Raises:
            ValueError: `min_len` is larger than a row's greatest length (the row is named).
        """
        sizes = np.asarray(source_lengths, np.int64)
        if self.match_source_len:
            longest = sizes - 1
            # As in fairseq, min_len is checked but has nothing left to say.
            least = longest
        else:
            longest = (self.max_len_a * sizes + self.max_len_b).astype(np.int64)
            least = np.full_like(longest, self.min_len)
        longest = np.minimum(longest, max_target_positions - 1)
        least = np.minimum(least, longest) if self.match_source_len else least
        for i in np.flatnonzero(longest < self.min_len):
            raise ValueError(
                f"min_len={self.min_len} is larger than the greatest length of {longest[i]} tokens "
                f"for input {i} ({sizes[i]} tokens); lower min_len or raise max_len_b"
            )
        return least.astype(np.int32), longest.astype(np.int32)


def _fits(value: Any, kind: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if isinstance(value, bool | np.bool_):
        return False
    if kind is int:
        return isinstance(value, int | np.integer)
    return isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value)
