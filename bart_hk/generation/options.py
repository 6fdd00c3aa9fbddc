"""What a user may ask of a search: `GenerationOptions`, under fairseq's names and defaults."""

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

from bart_hk.generation.other_names import instead_of


@dataclass(frozen=True)
class GenerationOptions:
    """Options of a search: which method, how long, what is allowed, what is returned.

    Unless another method is named it is beam search (`beam=1`: greedy search). Lengths count
    generated tokens: the forced first token (`<s>`) is one, the decoder's start token is not.
    Source of names, defaults and meaning: fairseq `dataclass/configs.py`, `sequence_generator.py`;
    of what fairseq does not have, transformers' `GenerationConfig`.

    Raises:
        ValueError: a value is out of its range, or two exclude each other.
    """

    # Hypotheses kept and returned; at most V - 1, since <pad> is never chosen. For `sampling`, how
    # many samples are drawn, independently.
    beam: int = 5
    nbest: int = 0  # how many of them are returned; 0: all
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

    # Draw tokens by their probability: of the `sampling_topk` most probable tokens, or of those
    # most probable ones that together reach `sampling_topp`; -1: of all. With both, the second
    # follows the first.
    sampling: bool = False
    beam_sampling: bool = False  # a beam search whose 2 * beam candidates are drawn, not the best
    sampling_topk: int = -1
    sampling_topp: float = -1.0
    # Of those, in this order, only tokens: at least `min_p` times as probable as the most probable
    # one; those of a surprise near to the expected one that together reach `typical_p`; at least as
    # probable as `epsilon_cutoff`; or as that and the entropy allow (`eta_cutoff`). See
    # `bart_hk.generation.sampling.truncate`.
    min_p: float = 0.0
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    # A row's draws follow from this and from the row alone (bart-hk-generate: and its number).
    seed: int = 1
    # The beams in so many groups, in which a token costs `strength` for each earlier group that
    # chooses it in the same step, and more the more the groups had in common before: the
    # `discount` says how much of that is left at every step. -1: no groups.
    diverse_beam_groups: int = -1
    diverse_beam_strength: float = 0.5
    diversity_discount: float = 1.0
    diversity_candidate_multiple: int = 1  # candidates for each beam of a group, 1 or 2
    diversity_rate: float = -1.0  # a beam's n-th best continuation pays n times this; -1: nothing
    # How phrases that a hypothesis must hold are given: in their order, or in any.
    constraints: Literal["ordered", "unordered"] | None = None
    # Contrastive search: of `sampling_topk` candidates the one with the greatest
    # (1 - alpha) * probability - alpha * likeness to earlier tokens; 0: not.
    penalty_alpha: float = 0.0

    forced_bos_token_id: int | None = None  # the first generated token; None: the model's
    suppress_tokens: tuple[int, ...] = ()  # ids that are never chosen
    begin_suppress_tokens: tuple[int, ...] = ()  # ... nor as the first token that is not forced
    bad_words_ids: tuple[tuple[int, ...], ...] = ()  # sequences of ids that never come up
    # Sequences of ids and what is added to the score of a token that completes one; also a mapping.
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    # Divides positive scores of tokens that a hypothesis already holds, and multiplies negative
    # ones: logits, or in searches with several beams, and of an ensemble, whose members share
    # nothing but probabilities, log probabilities; 1: nothing.
    repetition_penalty: float = 1.0
    # The same for tokens of the source, </s> included, which above 1 become more probable.
    encoder_repetition_penalty: float = 1.0
    encoder_no_repeat_ngram_size: int = 0  # no n-gram of the source, </s> included; 0: no limit
    # (start, factor): after `start` tokens the score s of </s> becomes s + |s| (factor ** n - 1), n
    # tokens later.
    exponential_decay_length_penalty: tuple[int, float] | None = None
    # Log probabilities are of what may be chosen alone: bans and penalties then make the rest more
    # probable, and a forced token is certain.
    renormalize_logits: bool = False
    # True: a search is over once it has `beam` hypotheses. Otherwise better hypotheses take the
    # places of worse ones, until no beam could still end better than the worst: were it to end now
    # (False), or, for lenpen > 0, at its greatest length ("never").
    early_stopping: bool | Literal["never"] = True
    lm_weight: float = 1.0  # of a language model's log probabilities, where there is one
    print_alignment: Literal["hard", "soft"] | None = None  # what "alignment" holds

    def __post_init__(self) -> None:
        for name in _SEQUENCES:
            object.__setattr__(self, name, _frozen(getattr(self, name)))
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if not _fits(value, kind):
                raise ValueError(f"{name} must be {_described(kind)}, not {value!r}")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("temperature", "repetition_penalty", "encoder_repetition_penalty"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than 0, not {getattr(self, name)}")
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if kind is float and not abs(value) <= _LARGEST:
                raise ValueError(f"{name} must be at most {_LARGEST:g} in size, not {value}")
            if kind is float and 0 < abs(value) < 1 / _LARGEST:
                raise ValueError(f"{name} must be at least {1 / _LARGEST:g} in size, not {value}")
        for name in ("diverse_beam_groups", "sampling_topk"):
            value = getattr(self, name)
            if value != -1 and value < 1:
                raise ValueError(f"{name} must be at least 1, or -1 for none, not {value}")
        if self.sampling_topp != -1 and not 0 < self.sampling_topp <= 1:
            raise ValueError(
                "sampling_topp must be greater than 0 and at most 1, or -1 for none, "
                f"not {self.sampling_topp}"
            )
        if self.diversity_rate != -1 and self.diversity_rate < 0:
            raise ValueError(
                f"diversity_rate must be at least 0, or -1 for none, not {self.diversity_rate}"
            )
        for name in ("penalty_alpha", "diversity_discount"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {getattr(self, name)}")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p must be from 0 (for none) to 1, not {self.min_p}")
        if not 0 < self.typical_p <= 1:
            raise ValueError(
                f"typical_p must be greater than 0 and at most 1 (for none), not {self.typical_p}"
            )
        for name in ("epsilon_cutoff", "eta_cutoff"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be from 0 (for none) to below 1, not {getattr(self, name)}"
                )
        for name, rows in (
            ("bad_words_ids", self.bad_words_ids),
            ("sequence_bias", [ids for ids, _ in self.sequence_bias]),
        ):
            if () in rows:
                raise ValueError(f"{name} holds a sequence without any id; leave it out")
        for _, added in self.sequence_bias:
            if abs(added) > _LARGEST:
                raise ValueError(f"sequence_bias must be at most {_LARGEST:g} in size, not {added}")
        if self.exponential_decay_length_penalty is not None:
            start, factor = self.exponential_decay_length_penalty
            if start < 0 or not 0 < factor <= _LARGEST:
                raise ValueError(
                    "exponential_decay_length_penalty must be a start from 0 and a factor greater "
                    f"than 0, not {self.exponential_decay_length_penalty}"
                )
        if self.diversity_candidate_multiple not in (1, 2):
            raise ValueError(
                "diversity_candidate_multiple must be 1 or 2, "
                f"not {self.diversity_candidate_multiple}"
            )
        if self.nbest > self.beam:
            raise ValueError(
                f"nbest={self.nbest} is more than the beam={self.beam} hypotheses that are "
                "searched; raise beam"
            )
        if self.diverse_beam_groups > 0 and self.beam % self.diverse_beam_groups:
            raise ValueError(
                f"beam={self.beam} cannot be divided into {self.diverse_beam_groups} groups of the "
                "same size; choose a multiple of diverse_beam_groups"
            )
        self._check_combination()

    def _check_combination(self) -> None:
        methods = {
            "sampling": self.sampling,
            "beam_sampling": self.beam_sampling,
            "diverse_beam_groups": self.diverse_beam_groups > 0,
            "diversity_rate": self.diversity_rate != -1,
            "match_source_len": self.match_source_len,
            "constraints": self.constraints is not None,
            "penalty_alpha": self.penalty_alpha > 0,
        }
        chosen = [name for name, is_on in methods.items() if is_on]
        if len(chosen) > 1:
            raise ValueError(
                f"{' and '.join(chosen)} exclude each other: each is a search of its own"
            )
        method = chosen[0] if chosen else "beam search"
        samples, groups = ("sampling", "beam_sampling"), ("diverse_beam_groups",)
        needs = {
            "sampling_topk": (*samples, "penalty_alpha"),
            **dict.fromkeys(("sampling_topp", *_FILTERS, "seed"), samples),
            "diverse_beam_strength": groups,
            "diversity_discount": groups,
            "diversity_candidate_multiple": groups,
        }
        for name, users in needs.items():
            if getattr(self, name) != getattr(type(self), name) and method not in users:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no meaning in {method}; it goes with "
                    f"{' or '.join(users)}"
                )
        settled = {
            "lenpen": self.unnormalized and "unnormalized=True",
            "max_len_a": self.match_source_len and "match_source_len=True",
            "max_len_b": self.match_source_len and "match_source_len=True",
        }
        for name, by in settled.items():
            if by and getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"{name}={getattr(self, name)} has no meaning with {by}; leave one of them out"
                )
        if method == "penalty_alpha" and (self.beam != 1 or self.sampling_topk < 2):
            raise ValueError(
                "contrastive search (penalty_alpha) follows one hypothesis, with at least 2 "
                f"candidates: it needs beam=1 and sampling_topk, not beam={self.beam} and "
                f"sampling_topk={self.sampling_topk}"
            )
        if self.early_stopping is not True and method in ("sampling", "penalty_alpha", *groups):
            raise ValueError(
                f"early_stopping={self.early_stopping!r} has no meaning with {method}, where "
                "hypotheses do not compete for places"
            )

    @property
    def is_sampled(self) -> bool:
        return self.sampling or self.beam_sampling

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
                instead = instead_of(name)
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(known)}"
                hint = f"here it is {instead}" if instead else hint
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
            # First cut, then made integers, so that no number is too large.
            greatest = self.max_len_a * sizes + float(self.max_len_b)
            longest = np.minimum(greatest, max_target_positions).astype(np.int64)
            least = np.full_like(longest, min(self.min_len, 2 * max_target_positions))
        longest = np.minimum(longest, max_target_positions - 1)
        least = np.minimum(least, longest) if self.match_source_len else least
        for i in np.flatnonzero(longest < self.min_len):
            raise ValueError(
                f"min_len={self.min_len} is larger than the greatest length of {longest[i]} tokens "
                f"for input {i} ({sizes[i]} tokens); lower min_len or raise max_len_b"
            )
        return least.astype(np.int32), longest.astype(np.int32)


_LARGEST = 1e6  # beyond, float32 would soon hold nothing but zeros and infinities
_LEAST = {"beam": 1, "nbest": 0, "min_len": 0, "no_repeat_ngram_size": 0, "seed": 0}
_LEAST |= {"diverse_beam_strength": 0, "encoder_no_repeat_ngram_size": 0}
_FILTERS = ("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
_DESCRIBED = {
    tuple[int, ...]: "a list of ids",
    tuple[tuple[int, ...], ...]: "a list of lists of ids",
    tuple[tuple[tuple[int, ...], float], ...]: "pairs of a list of ids and a number",
    tuple[int, float]: "a pair of a length and a factor",
}
_SEQUENCES = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "exponential_decay_length_penalty",
)


def _frozen(value: Any) -> Any:
    """Lists, arrays and mappings as tuples, and what they hold."""
    if isinstance(value, Mapping):
        return tuple((_frozen(key), _frozen(one)) for key, one in value.items())
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
        return tuple(map(_frozen, value))
    return value


def _fits(value: Any, kind: Any) -> bool:
    """Is `value` of the type that a field is annotated with?"""
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if kind is type(None):
        return value is None
    if get_origin(kind) is tuple:
        parts = get_args(kind)
        if not isinstance(value, tuple):
            return False
        if parts[-1] is Ellipsis:
            parts = parts[:1] * len(value)
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if kind is bool:
        return isinstance(value, bool | np.bool_)
    if isinstance(value, bool | np.bool_):
        return False
    if kind is int:
        return isinstance(value, int | np.integer)
    return isinstance(value, int | float | np.integer | np.floating) and math.isfinite(value)


def _described(kind: Any) -> str:
    """A field's type in words."""
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_described, get_args(kind)))
    if get_origin(kind) is tuple:
        return _DESCRIBED[kind]
    return "None" if kind is type(None) else f"of type {kind.__name__}"
