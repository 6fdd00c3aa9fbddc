"""Everything that one call asks of a search: checked as a whole, then told batch by batch.

Shapes: B batch, W beam width, V vocabulary, S source length, T target length.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from bart_hk.config import BARTConfig
from bart_hk.data.batching import pad_rows
from bart_hk.errors import NothingFoundWarning
from bart_hk.generation.conditions import (
    AllowedTokens,
    check_ids,
    checked_prefixes,
    draw_keys,
    prefix_array,
)
from bart_hk.generation.constraints import (
    check_repetitions,
    checked_constraints,
    compile_constraints,
)
from bart_hk.generation.histories import Sequences, padded_ids
from bart_hk.generation.lists import checked_rows
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.state import LanguageModel, Limits, LogitsProcessor, Rules
from bart_hk.generation.stops import Stops
from bart_hk.generation.trie import Trie

_MOST = np.iinfo(np.int32).max  # what one dimension of an array may have
# Options that may leave a row nothing.
_BANS = ("suppress_tokens", "begin_suppress_tokens", "bad_words_ids")
_NO_REPEATS = ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size")


@dataclasses.dataclass(frozen=True)
class Request:
    """What `Generator.generate` is asked for; `make` checks it."""

    options: GenerationOptions
    rules: Rules
    sources: list[np.ndarray]  # int32 [S_i] each
    prompts: np.ndarray  # int32, of each row; tokens after which lengths are counted
    min_len: np.ndarray  # int32, of each row
    max_len: np.ndarray  # int32, of each row
    prefixes: list[np.ndarray]  # int32 [P_i] each
    constraints: list[list[np.ndarray]] | None
    draws: np.ndarray | None  # uint32 [rows, 2]
    trie: Any  # tables, or None
    allowed: AllowedTokens | None  # a function that the host has to ask
    stops: Stops | None

    @classmethod
    def make(
        cls,
        config: BARTConfig,
        rows: Sequence[Any],
        options: GenerationOptions,
        *,
        is_ensemble: bool,
        prefix_tokens: Sequence[Any] | None = None,
        constraints: Any = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        lm: LanguageModel | None = None,
        logits_processor: LogitsProcessor | None = None,
        stops: Stops | None = None,
        draw_numbers: Sequence[int] | None = None,
    ) -> "Request":
        """From `Generator.generate`'s arguments.

        Raises:
            ValueError: see there.
        """
        if constraints is not None and options.constraints is None:
            options = dataclasses.replace(options, constraints="unordered")
        if not (logits_processor is None or callable(logits_processor)):
            raise ValueError(
                "logits_processor must be a function of tokens, their number and scores, not a "
                f"{type(logits_processor).__name__}"
            )
        if stops is not None and (constraints is not None or options.match_source_len):
            other = "match_source_len" if constraints is None else "constraints"
            raise ValueError(
                f"stop_strings and {other} exclude each other: one says that a text may not end "
                "yet, the other that it does"
            )
        restricted = prefix_allowed_tokens_fn is not None
        _check(config, options, is_ensemble, constraints is not None, restricted, lm is not None)
        if draw_numbers is not None and not options.is_sampled:
            raise ValueError(
                "draw_numbers tell draws apart, and nothing is drawn: sampling=True does"
            )
        sources = checked_rows("input", rows, config.max_source_positions, config.source_vocabulary)
        lengths = [len(row) for row in sources]
        min_len, max_len = options.length_limits(lengths, config.max_target_positions)
        prompts = np.zeros(len(sources), np.int32)
        if "encoder" not in config.sides:
            if prefix_tokens is not None:
                raise ValueError(
                    "a decoder_only model goes on after its input: write prefix_tokens there"
                )
            prefix_tokens = [row[: len(row) - (row[-1] == config.eos_token_id)] for row in sources]
            prompts = np.array([len(prompt) for prompt in prefix_tokens], np.int32)
            min_len, max_len = _after_prompts(prompts, min_len, max_len, config)
        prefixes = checked_prefixes(prefix_tokens, options, max_len, config)
        if constraints is not None:
            room = [most - len(prefix) for most, prefix in zip(max_len, prefixes, strict=True)]
            constraints = checked_constraints(
                constraints,
                rows=len(sources),
                vocabulary=config.vocab_size,
                never={config.eos_token_id, config.pad_token_id, *options.suppress_tokens},
                room=room,
            )
            size = options.no_repeat_ngram_size
            check_repetitions(constraints, size, options.constraints == "ordered")
        trie, allowed = None, prefix_allowed_tokens_fn
        if isinstance(allowed, Trie):
            _check_beginnings(allowed, prefixes, config.decoder_start_token_id)
            _check_ends(allowed, prefixes, min_len, max_len, options, config.eos_token_id)
            trie, allowed = allowed.tables(config.vocab_size, config.eos_token_id), None
        return cls(
            options,
            _rules(config, options, is_ensemble, restricted, lm, logits_processor),
            sources,
            prompts,
            min_len,
            max_len,
            prefixes,
            constraints,
            draw_keys(sources, options.seed, draw_numbers) if options.is_sampled else None,
            trie,
            allowed,
            stops,
        )

    def limits(self, batch: Sequence[int] | np.ndarray, count: int, vocabulary: int) -> Limits:
        """Of the rows `batch`, and of rows of padding up to `count`."""
        options = self.options
        room = (0, count - len(batch))
        decay = source = None
        if options.exponential_decay_length_penalty is not None:
            start, factor = options.exponential_decay_length_penalty
            decay = (np.pad(self.prompts[batch], room) + np.int32(start), np.float32(factor))
        if options.encoder_repetition_penalty != 1 or options.encoder_no_repeat_ngram_size:
            rows = [self.sources[i] for i in batch]
            width = 1 << (max(map(len, rows)) - 1).bit_length()
            source = pad_rows(rows, vocabulary, width, count)
        banned = [(ids, -np.inf) for ids in options.bad_words_ids]

        def value(name: str) -> np.float32 | None:
            """Of an option that the search does without where it has its default."""
            chosen = getattr(options, name)
            return None if chosen == getattr(GenerationOptions, name) else np.float32(chosen)

        strength = options.diverse_beam_strength
        if self.rules.method == "siblings":
            strength = options.diversity_rate
        constraints = None
        if self.constraints is not None:
            phrases = [self.constraints[i] for i in batch]
            constraints = compile_constraints(phrases, options.constraints == "ordered", count)
        return Limits(
            min_len=np.pad(self.min_len[batch], room),
            max_len=np.pad(self.max_len[batch], room),
            prefix=prefix_array([self.prefixes[i] for i in batch], count),
            temperature=np.float32(options.temperature),
            unkpen=np.float32(options.unkpen),
            free_eos=np.bool_(options.match_source_len),
            lenpen=np.float32(0 if options.unnormalized else options.lenpen),
            suppress=padded_ids(options.suppress_tokens, vocabulary),
            begin_suppress=padded_ids(options.begin_suppress_tokens, vocabulary),
            sequence_bias=Sequences.of(options.sequence_bias, vocabulary),
            bad_words=Sequences.of(banned, vocabulary),
            repetition_penalty=value("repetition_penalty"),
            encoder_repetition_penalty=value("encoder_repetition_penalty"),
            source=source,
            decay=decay,
            draws=None if self.draws is None else np.pad(self.draws[batch], (room, (0, 0))),
            topp=np.float32(options.sampling_topp),
            min_p=value("min_p"),
            typical_p=value("typical_p"),
            epsilon_cutoff=value("epsilon_cutoff"),
            eta_cutoff=value("eta_cutoff"),
            strength=np.float32(strength),
            discount=np.float32(options.diversity_discount),
            penalty_alpha=np.float32(options.penalty_alpha),
            lm_weight=np.float32(options.lm_weight),
            constraints=constraints,
            trie=self.trie,
            stops=self.stops,
        )

    def warn_of_nothing(self, rows: Sequence[int]) -> None:
        """Says which rows have no hypothesis, and what may have left them none."""
        if not rows:
            return
        options = self.options
        in_force = {
            "prefix_allowed_tokens_fn": self.trie is not None or self.allowed is not None,
            "constraints": self.constraints is not None,
            "logits_processor": self.rules.logits_processor is not None,
            **{name: bool(getattr(options, name)) for name in _BANS},
            **{f"{name}={getattr(options, name)}": getattr(options, name) for name in _NO_REPEATS},
            f"min_len={options.min_len}": options.min_len > 1,
        }
        names = [name for name, is_on in in_force.items() if is_on]
        longest = int(self.max_len[rows[0]])
        why = f"under {' and '.join(names)} nothing ended with </s> within {longest} tokens"
        if not names:
            why = "no token had a score; look for NaN in the weights"
        more = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        warnings.warn(
            f"the search found no hypothesis for input {rows[0]}{more}: {why}",
            NothingFoundWarning,
            stacklevel=3,
        )


def _after_prompts(
    sizes: np.ndarray, min_len: np.ndarray, max_len: np.ndarray, config: BARTConfig
) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest lengths, int32 [B], of texts that begin with prompts of these sizes.

    Raises:
        ValueError: a prompt leaves no room.
    """
    longest = np.minimum(max_len + sizes, config.max_target_positions - 1).astype(np.int32)
    for i in np.flatnonzero(longest < min_len + sizes):
        raise ValueError(
            f"input {i} has {sizes[i]} tokens, after which there is no room for min_len="
            f"{min_len[i]} more in the model's {config.max_target_positions} positions; shorten it"
        )
    return min_len + sizes, longest


def _check_beginnings(trie: Trie, prefixes: Sequence[np.ndarray], start: int) -> None:
    """
    Raises:
        ValueError: a row is forced to begin as no sequence of the trie does.
    """
    known: set[tuple[int, ...]] = set()
    for i, prefix in enumerate(prefixes):
        begins = tuple(prefix.tolist())
        if begins in known:
            continue
        known.add(begins)
        for n, token in enumerate(begins):
            if token not in trie(i, [start, *begins[:n]]):
                raise ValueError(
                    f"the trie has no sequence that begins with {list(begins[: n + 1])}, as input "
                    f"{i} must; its sequences begin with the forced first token, if there is one"
                )


def _check_ends(
    trie: Trie,
    prefixes: Sequence[np.ndarray],
    min_len: np.ndarray,  # int32, of each row
    max_len: np.ndarray,  # int32, of each row
    options: GenerationOptions,
    eos: int,
) -> None:
    """
    Raises:
        ValueError: no sequence of the trie is an output that a row may have.
    """
    begins = [tuple(prefix.tolist()) for prefix in prefixes]
    for least in np.unique(min_len):
        rows = np.flatnonzero(min_len == least)
        of_these = [begins[i] for i in rows]
        shortest = trie.shortest_outputs(of_these, int(least), options.suppress_tokens, eos)
        for i in rows:
            if shortest[begins[i]] > max_len[i]:
                without = " and no suppressed token" if options.suppress_tokens else ""
                after = f" that begins with {list(begins[i])}" if begins[i] else ""
                raise ValueError(
                    f"the trie has no sequence{after} of {least} to {max_len[i]} ids before </s>"
                    f"{without}, so there would be no output for input {i}; change min_len, "
                    "max_len_b or suppress_tokens"
                )


def _check(
    config: BARTConfig,
    options: GenerationOptions,
    is_ensemble: bool,
    constrained: bool,
    restricted: bool,
    has_lm: bool,
) -> None:
    """
    Raises:
        ValueError: the options do not go with the model, or with what the rows bring.
    """
    config.require("decoder", "generation")
    for name in ("match_source_len", "print_alignment"):
        if getattr(options, name):
            config.require("encoder", f"{name}={getattr(options, name)}")
    if options.print_alignment and config.n_latent_tokens:
        raise ValueError(
            f"print_alignment={options.print_alignment} needs attention to tokens; this model's "
            f"decoder attends to n_latent_tokens={config.n_latent_tokens} latents"
        )
    if options.unkpen and config.unk_token_id is None:
        raise ValueError(f"unkpen={options.unkpen} has no meaning: this model has no <unk>")
    if options.constraints is not None and not constrained:
        raise ValueError(
            f"constraints={options.constraints!r} says in which order phrases come, but none were "
            "given"
        )
    if options.lm_weight != 1 and not has_lm:
        raise ValueError(f"lm_weight={options.lm_weight} has no meaning without an lm")
    check_ids("suppress_tokens", options.suppress_tokens, config.vocab_size)
    check_ids("begin_suppress_tokens", options.begin_suppress_tokens, config.vocab_size)
    for name, rows in (
        ("bad_words_ids", options.bad_words_ids),
        ("sequence_bias", [ids for ids, _ in options.sequence_bias]),
    ):
        check_ids(name, [number for ids in rows for number in ids], config.vocab_size)
    if (config.eos_token_id,) in options.bad_words_ids:
        raise ValueError(
            f"bad_words_ids holds </s> ({config.eos_token_id}) alone, without which no hypothesis "
            "ends; min_len makes them longer"
        )
    for name in ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size"):
        value = getattr(options, name)
        if value != getattr(GenerationOptions, name) and config.source_encoder_layers:
            raise ValueError(
                f"{name}={value} has no meaning: this model's sources have a vocabulary of their "
                "own"
            )
    if config.eos_token_id in options.suppress_tokens:
        raise ValueError(
            f"suppress_tokens holds </s> ({config.eos_token_id}), without which no hypothesis "
            "ends; min_len makes them longer"
        )
    if options.penalty_alpha and is_ensemble:
        raise ValueError(
            "contrastive search (penalty_alpha) compares features, of which an ensemble has "
            "several; take one model"
        )
    if restricted and options.penalty_alpha:
        raise ValueError(
            "prefix_allowed_tokens_fn and penalty_alpha exclude each other: contrastive search "
            "chooses among the sampling_topk most probable tokens, which may all be forbidden"
        )
    if restricted and constrained:
        raise ValueError(
            "prefix_allowed_tokens_fn and constraints exclude each other: a phrase that must come "
            "may be forbidden; let the function allow only texts that hold the phrases"
        )
    continuations = options.beam * min(2 * options.beam, config.vocab_size)
    if not options.sampling and continuations > _MOST:
        raise ValueError(
            f"beam={options.beam} has {continuations} continuations to choose from, more than the "
            f"{_MOST} that can be numbered; lower beam"
        )


def _rules(
    config: BARTConfig,
    options: GenerationOptions,
    is_ensemble: bool,
    restricted: bool,
    lm: LanguageModel | None,
    logits_processor: LogitsProcessor | None,
) -> Rules:
    changes: dict[str, Any] = {}
    if options.is_sampled:
        changes["method"] = "sampling" if options.sampling else "beam_sampling"
        changes["candidate_multiple"] = 1 if options.sampling else 2
        changes["topk"] = max(options.sampling_topk, 0)
        changes["nucleus"] = options.sampling_topp > 0
    elif options.diverse_beam_groups > 0:
        changes["method"] = "groups"
        changes["groups"] = options.diverse_beam_groups
        changes["candidate_multiple"] = options.diversity_candidate_multiple
    elif options.diversity_rate != -1:
        changes["method"] = "siblings"
    elif options.constraints is not None:
        changes["method"] = "constraints"
    elif options.penalty_alpha:
        changes["method"] = "contrastive"
        changes["beam"] = options.sampling_topk
    elif restricted:
        changes["candidate_multiple"] = 1  # as in fairseq
    rules = Rules(
        beam=options.beam,
        eos=config.eos_token_id,
        pad=config.pad_token_id,
        unk=config.unk_token_id,
        no_repeat_ngram_size=options.no_repeat_ngram_size,
        encoder_no_repeat_ngram_size=options.encoder_no_repeat_ngram_size,
        on_logits=(options.sampling or options.beam == 1) and not is_ensemble,
        renormalised=options.renormalize_logits,
        # The members of an ensemble have their own probabilities tempered.
        tempered=options.temperature != 1.0 and not is_ensemble,
        early_stopping=options.early_stopping,
        lm=lm,
        logits_processor=logits_processor,
    )
    rules = dataclasses.replace(rules, **changes)
    if rules.method in ("beam", "contrastive"):  # fairseq's bound
        rules = dataclasses.replace(rules, beam=min(rules.beam, config.vocab_size - 1))
    return rules
