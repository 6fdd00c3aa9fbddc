"""The option sets whose searches `generation.py` records, under bart_hk's names.

What is not given is PLAIN's, or the default. PLAIN_SETS are searched for every sentence, the others
for the first few. `INPUTS_OF` names what a set is given beside its options, a list with an entry
for each sentence, or a flag; `row_inputs` makes the lists.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from _search_models import BOS, EOS, MASK, UNK

PLAIN = {"beam": 4}
PLAIN_SETS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"beam": 1},
    "beam_2": {"beam": 2},
    "beam_5": {"beam": 5},
    "lenpen_0": {"lenpen": 0.0},
    "lenpen_2": {"lenpen": 2.0},
    "lenpen_4": {"lenpen": 4.0},
    "unnormalized": {"unnormalized": True},
    "min_len_8": {"min_len": 8},
    "min_len_16": {"min_len": 16},
    "max_len_b_4": {"max_len_b": 4},
    "min_5_max_7": {"min_len": 5, "max_len_b": 7},
    "max_len_a": {"max_len_a": 0.5, "max_len_b": 1},
    "max_len_a_b": {"max_len_a": 1.2, "max_len_b": 2, "min_len": 3},
    "min_0_max_3": {"min_len": 0, "max_len_b": 3},
    "unkpen_2": {"unkpen": 2.0},
    "unkpen_-2": {"unkpen": -2.0},
    "temperature_0.5": {"temperature": 0.5},
    "temperature_2": {"temperature": 2.0},
    "temperature_unkpen_lenpen": {"temperature": 1.5, "unkpen": 1.0, "lenpen": 0.6},
    "no_repeat_2": {"no_repeat_ngram_size": 2},
    "no_repeat_3": {"no_repeat_ngram_size": 3},
    "no_repeat_2_greedy": {"beam": 1, "no_repeat_ngram_size": 2, "min_len": 12},
    "match_source_len": {"match_source_len": True},
    "match_source_len_lenpen_0": {"match_source_len": True, "lenpen": 0.0},
    "match_source_len_no_repeat": {"match_source_len": True, "no_repeat_ngram_size": 2},
    "summary": {"lenpen": 2.0, "min_len": 10, "max_len_b": 18, "no_repeat_ngram_size": 3},
    "headline": {"lenpen": 1.0, "min_len": 6, "max_len_b": 10, "no_repeat_ngram_size": 3},
    "unkpen_min_len": {"unkpen": 4.0, "min_len": 10, "lenpen": 0.5},
    "long": {"min_len": 21, "no_repeat_ngram_size": 3},
}
# Only the model with the longer positions.
LONGER: dict[str, dict[str, Any]] = {
    "beyond_32": {"min_len": 33},
    "whole_length": {"min_len": 39, "unkpen": 1.0},
}


def _groups(groups: int, strength: float = 0.5, **more: Any) -> dict[str, Any]:
    return {"diverse_beam_groups": groups, "diverse_beam_strength": strength, **more}


_SHORT = {"max_len_b": 16}  # the longest target: some rules could be obeyed for ever
MORE_SETS: dict[str, dict[str, Any]] = {
    "nbest_2": {"nbest": 2},
    "nbest_1_lenpen": {"nbest": 1, "beam": 6, "lenpen": 2.0},
    "groups_1": _groups(1),
    "groups_2": _groups(2),
    "groups_4": _groups(4),
    "groups_2_strong": _groups(2, 2.0),
    "groups_4_weak": _groups(4, 0.1),
    "groups_3_of_6": _groups(3, 0.8, beam=6),
    "groups_2_of_8": _groups(2, 0.3, beam=8),
    "groups_hamming": _groups(2, 1.0, diversity_discount=0.0),
    "groups_discounted": _groups(4, 0.4, diversity_discount=0.5, beam=8),
    "groups_twice_the_candidates": _groups(2, diversity_candidate_multiple=2),
    "groups_as_published": _groups(
        3, 1.0, diversity_discount=0.0, diversity_candidate_multiple=2, beam=6
    ),
    "groups_min_len": _groups(2, min_len=8, lenpen=0.5),
    "groups_no_repeat": _groups(4, min_len=12, no_repeat_ngram_size=2),
    "groups_unkpen": _groups(2, unkpen=2.0),
    "groups_short": _groups(2, 1.0, max_len_b=5, unnormalized=True),
    "siblings_0": {"diversity_rate": 0.0},
    "siblings_0.2": {"diversity_rate": 0.2},
    "siblings_0.7": {"diversity_rate": 0.7},
    "siblings_3": {"diversity_rate": 3.0},
    "siblings_beam_2": {"diversity_rate": 0.5, "beam": 2},
    "siblings_beam_8": {"diversity_rate": 0.4, "beam": 8, "lenpen": 2.0},
    "siblings_unkpen": {"diversity_rate": 0.5, "unkpen": 3.0},
    "siblings_min_len": {"diversity_rate": 0.3, "min_len": 10, "no_repeat_ngram_size": 2},
    "prefix": {},
    "prefix_foreign": {},
    "prefix_greedy": {"beam": 1},
    "prefix_min_len": {"min_len": 9, "beam": 3},
    "prefix_no_repeat": {"no_repeat_ngram_size": 2, "min_len": 11},
    "prefix_max_len_5": {"max_len_b": 5},
    "prefix_groups": _groups(2),
    "prefix_siblings": {"diversity_rate": 0.5, "unkpen": 1.0},
    "suppressed": {},
    "suppressed_beam_2": {"beam": 2, "unkpen": 3.0},
    "suppressed_min_len": {"min_len": 9, "lenpen": 0.3},
    "suppressed_groups": _groups(2, 1.0),
    "suppressed_prefix": {"no_repeat_ngram_size": 3},
    "ordered_tokens": {"constraints": "ordered"},
    "ordered_phrases": {"constraints": "ordered", "beam": 6},
    "ordered_phrase_lenpen": {"constraints": "ordered", "lenpen": 2.0, "min_len": 9},
    "ordered_beam_10": {"constraints": "ordered", "beam": 10, "unkpen": 1.0},
    "ordered_beam_2": {"constraints": "ordered", "beam": 2},
    "unordered_tokens": {"constraints": "unordered"},
    "unordered_phrases": {"constraints": "unordered", "beam": 6},
    "unordered_branching": {"constraints": "unordered", "beam": 8, "lenpen": 0.5},
    "unordered_repeated": {"constraints": "unordered", "beam": 5},
    "unordered_min_len": {"constraints": "unordered", "min_len": 12, "unnormalized": True},
    "unordered_lm": {"constraints": "unordered", "lm_weight": 0.3},
    "unordered_prefix": {"constraints": "unordered", "beam": 5},
    "trie": {},
    "trie_greedy": {"beam": 1},
    "trie_beam_8": {"beam": 8, "lenpen": 0.0},
    "alternating": _SHORT,
    "alternating_lenpen": {"lenpen": 3.0, "beam": 6, **_SHORT},
    "alternating_min_len": {"min_len": 9, "no_repeat_ngram_size": 2, "beam": 3, **_SHORT},
    "ensemble": {},
    "ensemble_greedy": {"beam": 1},
    "ensemble_temperature": {"temperature": 1.7, "unkpen": 1.0},
    "ensemble_no_repeat": {"min_len": 12, "no_repeat_ngram_size": 2},
    "ensemble_groups": _groups(4),
    "ensemble_ordered": {"constraints": "ordered", "beam": 5},
    "lm_0.2": {"lm_weight": 0.2},
    "lm_1": {"lm_weight": 1.0},
    "lm_-0.3": {"lm_weight": -0.3},
    "lm_greedy": {"lm_weight": 0.5, "beam": 1},
    "lm_min_len": {"lm_weight": 0.3, "min_len": 8, "no_repeat_ngram_size": 2, "unkpen": 1.0},
    "lm_siblings": {"lm_weight": 0.3, "diversity_rate": 0.4},
    "lm_ensemble_prefix": {"lm_weight": 0.4, "temperature": 1.3},
    "hard_alignment": {"print_alignment": "hard", "beam": 3},
    "hard_alignment_ensemble": {"print_alignment": "hard", "min_len": 7},
    "soft_alignment": {"print_alignment": "soft", "beam": 2, "unkpen": 2.0},
}
# What goes with them: the kind of list that `row_inputs` makes, under the argument's name.
INPUTS_OF: dict[str, dict[str, Any]] = {
    "prefix": {"prefix_tokens": "of_target"},
    "prefix_foreign": {"prefix_tokens": "foreign"},
    "prefix_greedy": {"prefix_tokens": "foreign"},
    "prefix_min_len": {"prefix_tokens": "of_target"},
    "prefix_no_repeat": {"prefix_tokens": "foreign"},
    "prefix_max_len_5": {"prefix_tokens": "of_target"},
    "prefix_groups": {"prefix_tokens": "foreign"},
    "prefix_siblings": {"prefix_tokens": "of_target"},
    "suppressed_prefix": {"prefix_tokens": "of_target"},
    "ordered_tokens": {"constraints": "tokens"},
    "ordered_phrases": {"constraints": "phrases"},
    "ordered_phrase_lenpen": {"constraints": "phrase"},
    "ordered_beam_10": {"constraints": "phrases"},
    "ordered_beam_2": {"constraints": "phrase"},
    "unordered_tokens": {"constraints": "tokens"},
    "unordered_phrases": {"constraints": "phrases"},
    "unordered_branching": {"constraints": "branching"},
    "unordered_repeated": {"constraints": "repeated"},
    "unordered_min_len": {"constraints": "phrase"},
    "unordered_lm": {"constraints": "phrases", "lm": True},
    "unordered_prefix": {"constraints": "tokens", "prefix_tokens": "foreign"},
    "trie": {"allowed": "trie"},
    "trie_greedy": {"allowed": "trie"},
    "trie_beam_8": {"allowed": "trie"},
    "alternating": {"allowed": "alternating"},
    "alternating_lenpen": {"allowed": "alternating"},
    "alternating_min_len": {"allowed": "alternating"},
    "ensemble": {"ensemble": True},
    "ensemble_greedy": {"ensemble": True},
    "ensemble_temperature": {"ensemble": True},
    "ensemble_no_repeat": {"ensemble": True},
    "ensemble_groups": {"ensemble": True},
    "ensemble_ordered": {"ensemble": True, "constraints": "phrase"},
    "lm_0.2": {"lm": True},
    "lm_1": {"lm": True},
    "lm_-0.3": {"lm": True},
    "lm_greedy": {"lm": True},
    "lm_min_len": {"lm": True},
    "lm_siblings": {"lm": True},
    "lm_ensemble_prefix": {"lm": True, "ensemble": True, "prefix_tokens": "of_target"},
    "hard_alignment_ensemble": {"ensemble": True},
}


def option_sets(vocab_size: int, longer: bool) -> dict[str, dict[str, Any]]:
    """Every set for a model, those that suppress tokens with which."""
    # Two symbols of the circles, which come often, and a third of the rest.
    suppressed: dict[str, Any] = {
        "suppress_tokens": [MASK + 1, MASK + 7, *range(MASK + 9, vocab_size, 3)]
    }
    sets: dict[str, dict[str, Any]] = {**PLAIN_SETS, **(LONGER if longer else {}), **MORE_SETS}
    return {
        name: {**options, **(suppressed if "suppressed" in name else {})}
        for name, options in sets.items()
    }


def row_inputs(kinds: dict[str, Any], targets: list[list[int]], vocab_size: int) -> dict[str, Any]:
    """What `INPUTS_OF` asks for, for the sentences with these targets."""
    found = dict(kinds)
    if "prefix_tokens" in kinds:
        rows = [_prefix(kinds["prefix_tokens"], i, t, vocab_size) for i, t in enumerate(targets)]
        found["prefix_tokens"] = rows
    if "constraints" in kinds:
        rng = np.random.default_rng(3)
        found["constraints"] = [
            _phrases(kinds["constraints"], i, targets, rng) for i in range(len(targets))
        ]
    if kinds.get("allowed") == "trie":
        found["allowed"] = {"trie": _sequences(targets, vocab_size)}
    elif "allowed" in kinds:
        found["allowed"] = {"rule": kinds["allowed"], "vocab_size": vocab_size}
    return found


def _prefix(kind: str, i: int, target: list[int], vocab_size: int) -> list[int]:
    if kind == "of_target":
        return target[: i % 6 if i % 6 < len(target) else 1]  # row 0: nothing is forced
    ids = np.random.default_rng([4, i]).integers(MASK + 1, vocab_size, i % 4 + 1).tolist()
    return [*[BOS] * (i % 3 > 0), *ids]


def _phrases(
    kind: str, i: int, targets: list[list[int]], rng: np.random.Generator
) -> list[list[int]]:
    """Parts of what should be said and of what others say. Every fifth sentence has none."""
    if i % 5 == 4:
        return []
    own, other = targets[i][1:-1], targets[i - 1][1:-1]
    start = int(rng.integers(0, max(1, len(own) - 2)))
    here, there = own[start : start + 2], other[-3:]
    return {
        "tokens": [here[:1], there[:1]],
        "phrase": [there],
        "phrases": [here, there[:2], own[-1:]],
        "branching": [[*there[:1], here[0]], there[:2], there],
        "repeated": [here, there[:1], here],
    }[kind]


def _sequences(targets: list[list[int]], vocab_size: int) -> list[list[int]]:
    """Outputs to choose from: what is right for some, and variations that share a beginning."""
    rng = np.random.default_rng(6)
    found = []
    for target in targets:
        for end in range(2, len(target), 2):
            tail = rng.integers(MASK + 1, vocab_size, rng.integers(0, 4)).tolist()
            found.append([*target[:end], *tail, EOS])
    return found


def allowed_tokens(allowed: dict[str, Any]) -> Callable[[int, Sequence[int]], list[int]]:
    """The `prefix_allowed_tokens_fn` that a case describes."""
    if "trie" in allowed:
        tree: dict[int, Any] = {}
        for sequence in allowed["trie"]:
            node = tree
            for token in sequence:
                node = node.setdefault(token, {})

        def of_trie(row: int, ids: Sequence[int]) -> list[int]:
            node = tree
            for token in [int(i) for i in ids][1:]:
                node = node.get(token, {})
            return list(node)

        return of_trie

    def alternating(row: int, ids: Sequence[int]) -> list[int]:
        """Odd ids after even ones, turned around in every other row; `</s>` from the fourth."""
        if len(ids) == 1:
            return [BOS]
        odd = (int(ids[-1]) + 1 + (row % 2) * (len(ids) == 2)) % 2
        every = [UNK, *range(MASK + 1, allowed["vocab_size"])]
        return [i for i in every if i % 2 == odd] + [EOS] * (len(ids) > 4)

    return alternating
