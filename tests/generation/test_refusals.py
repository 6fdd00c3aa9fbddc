"""What a search refuses, and what it says where nothing is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.errors import NothingFoundWarning
from bart_hk.generation.generator import Generator
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.trie import Trie
from bart_hk.model import Ensemble
from tests.generation.test_methods import PHRASES, TRIE


@pytest.fixture(scope="module")
def sources(golden):
    rows = golden("generation/cases.json")["models"]["post_norm"]["sources"]
    return [np.array(row) for row in rows if 8 < len(row) <= 16][:4]


BAD = {
    "a prefix for each input": ({}, {"prefix_tokens": [[0]]}, "1 prefixes do not go with 4 inputs"),
    "eos": ({}, {"prefix_tokens": [[0, 2]] * 4}, "prefix_tokens 0 holds </s> \\(2\\)"),
    "an id": ({}, {"prefix_tokens": [[0, 99]] * 4}, "prefix_tokens 0 holds the id 99, outside"),
    "a large id": ({}, {"prefix_tokens": [[0, 2**32 + 5]] * 4}, "holds the id 4294967301, outside"),
    "first eos": ({"forced_bos_token_id": 2}, {}, "forced_bos_token_id=2 is </s> or <pad>"),
    "no ids": ({}, {"prefix_tokens": [[0.5]] * 4}, "prefix_tokens 0 must be a 1-D array of int"),
    "too long": ({"max_len_b": 3}, {"prefix_tokens": [[0] * 4] * 4}, "has 4 tokens, more than the"),
    "two firsts": (
        {"forced_bos_token_id": 5},
        {"prefix_tokens": [[0]] * 4},
        "forced_bos_token_id and prefix_tokens exclude each other",
    ),
    "first": ({"forced_bos_token_id": 99}, {}, "forced_bos_token_id holds the id 99, outside the"),
    "suppressed": ({"suppress_tokens": (99,)}, {}, "suppress_tokens holds the id 99, outside the"),
    "suppressed eos": (
        {"suppress_tokens": (2,)},
        {},
        "suppress_tokens holds </s> \\(2\\), without",
    ),
    "words": ({"bad_words_ids": [[5], [6, 99]]}, {}, "bad_words_ids holds the id 99, outside the"),
    "eos as a word": ({"bad_words_ids": [[2]]}, {}, "bad_words_ids holds </s> \\(2\\) alone, with"),
    "bias": ({"sequence_bias": {(99,): 1.0}}, {}, "sequence_bias holds the id 99, outside the"),
    "order alone": ({"constraints": "ordered"}, {}, "says in which order phrases come, but none"),
    "phrases too long": (
        {"max_len_b": 3},
        {"constraints": [[[5, 6, 7]], [], [], []]},
        "the constraints of input 0 have 3 tokens, but its output has room for 2",
    ),
    "phrase": ({}, {"constraints": [[[5, 99]], [], [], []]}, "holds the id 99, outside the voc"),
    "weight": ({"lm_weight": 0.5}, {}, "lm_weight=0.5 has no meaning without an lm"),
    "both": (
        {},
        {"constraints": PHRASES, "prefix_allowed_tokens_fn": TRIE},
        "prefix_allowed_tokens_fn and constraints exclude each other",
    ),
    "nothing": (
        {},
        {"prefix_allowed_tokens_fn": lambda row, ids: []},
        "prefix_allowed_tokens_fn allows input 0 nothing after \\[2, 0\\]; it must allow",
    ),
    "no ids at all": (
        {},
        {"prefix_allowed_tokens_fn": lambda row, ids: [5.5, 2]},
        "prefix_allowed_tokens_fn must give ids for input 0, not \\[5.5, 2\\]",
    ),
    "None": (
        {},
        {"prefix_allowed_tokens_fn": lambda row, ids: None},
        "allows input 0 nothing after",
    ),
    "lm": (
        {},
        {"lm": lambda tokens, length: jnp.zeros(48)},
        "lm gives an array of shape \\(48,\\) for 20 rows of tokens; it must be \\(20, 48\\)",
    ),
    "outside": (
        {},
        {"prefix_allowed_tokens_fn": lambda row, ids: [99]},
        "allows input 0 the id 99, outside the vocabulary",
    ),
    "trie": (
        {},
        {"prefix_allowed_tokens_fn": Trie([[0, 99]])},
        "the trie holds the id 99, outside",
    ),
    "suppressed trie": (
        {"suppress_tokens": (7, 5, 11), "max_len_b": 9},
        {"prefix_allowed_tokens_fn": TRIE},
        "the trie has no sequence that begins with \\[0\\] of 1 to 9 ids before </s> and no "
        "suppressed token, so there would be no output for input 0",
    ),
    "short trie": (
        {"min_len": 6},
        {"prefix_allowed_tokens_fn": TRIE},
        "the trie has no sequence that begins with \\[0\\] of 6 to 39 ids",
    ),
    "long trie": (
        {"max_len_b": 3},
        {"prefix_allowed_tokens_fn": TRIE, "prefix_tokens": [[0, 11, 12], [0], [0], [0]]},
        "the trie has no sequence that begins with \\[0, 11, 12\\] of 1 to 3 ids",
    ),
    "repeats": (
        {"no_repeat_ngram_size": 2},
        {"constraints": [[], [[5], [7, 8, 7, 8]], [], []]},
        "constraint 1 of input 1 repeats \\[7, 8\\], which no_repeat_ngram_size=2 forbids",
    ),
    "repeats in order": (
        {"no_repeat_ngram_size": 2, "constraints": "ordered"},
        {"constraints": [[[7, 8, 9], [5, 7, 8]], [], [], []]},
        "constraint 1 of input 0 repeats \\[7, 8\\]",
    ),
    "max_tokens": (
        {},
        {"max_tokens": "x"},
        "max_tokens must be a whole number, at least 1, not 'x'",
    ),
    "batch_size": (
        {},
        {"batch_size": 2.0},
        "batch_size must be a whole number, at least 1, not 2.0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(generator, params, sources, case):
    options, inputs, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        generator.generate(params, sources, GenerationOptions(**options), **inputs)


NOTHING = {
    "no end": (
        {"max_len_b": 5},
        {"prefix_allowed_tokens_fn": lambda row, ids: [7] if row == 2 else [7, 2]},
        "for input 2: under prefix_allowed_tokens_fn nothing ended with </s> within 5 tokens",
    ),
    "phrases that share a pair": (
        {"no_repeat_ngram_size": 2, "max_len_b": 12},
        {"constraints": [[], [[7, 8, 9], [7, 8, 10]], [], [[7, 8, 9], [7, 8, 10]]]},
        "for input 1 and 1 more: under constraints and no_repeat_ngram_size=2 nothing ended",
    ),
    "a trie that repeats": (
        {"no_repeat_ngram_size": 1},
        {"prefix_allowed_tokens_fn": Trie([[0, 7, 7]])},
        "for input 0 and 3 more: under prefix_allowed_tokens_fn and no_repeat_ngram_size=1",
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_rows_without_any_hypothesis_are_named(generator, params, sources, case):
    options, inputs, message = NOTHING[case]
    with pytest.warns(NothingFoundWarning, match=message) as said:
        found = generator.generate(params, sources, GenerationOptions(beam=4, **options), **inputs)
    assert len(said) == 1
    empty = [i for i, hypotheses in enumerate(found) if not hypotheses]
    assert empty and f"input {empty[0]}" in message
    if len(empty) > 1:
        assert f"and {len(empty) - 1} more" in message


def test_weights_that_are_no_numbers_are_suspected(generator, params, sources):
    broken = jax.tree.map(lambda x: x * jnp.nan, params)
    with pytest.warns(NothingFoundWarning, match="no token had a score; look for NaN"):
        assert generator.generate(broken, sources[:1], GenerationOptions(beam=1)) == [[]]


def test_an_ensemble_has_no_features_to_compare(generator, params, sources):
    ensemble = Generator(Ensemble((generator.bart, generator.bart)))
    options = GenerationOptions(beam=1, penalty_alpha=0.6, sampling_topk=4)
    with pytest.raises(ValueError, match="an ensemble has several; take one model"):
        ensemble.generate((params, params), sources, options)
