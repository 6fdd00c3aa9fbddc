"""Generation options: fairseq's names and defaults, and errors in one line."""

import dataclasses

import numpy as np
import pytest

from bart_hk.generation.options import GenerationOptions

# What fairseq's GenerationConfig calls the same; its beam is 5 and its hub returns all of them.
FAIRSEQS = {
    "beam": 5,
    "max_len_a": 0,
    "max_len_b": 200,
    "min_len": 1,
    "lenpen": 1,
    "unnormalized": False,
    "unkpen": 0,
    "temperature": 1.0,
    "no_repeat_ngram_size": 0,
    "match_source_len": False,
    "sampling": False,
    "sampling_topk": -1,
    "sampling_topp": -1.0,
    "diverse_beam_groups": -1,
    "diverse_beam_strength": 0.5,
    "diversity_rate": -1.0,
    "constraints": None,
    "lm_weight": 1.0,  # SequenceGenerator's
    "print_alignment": None,
}


def test_defaults_are_fairseqs():
    ours = dataclasses.asdict(GenerationOptions())
    assert {name: ours[name] for name in FAIRSEQS} == FAIRSEQS
    # The rest is off unless it is asked for.
    assert {name: ours[name] for name in ours.keys() - FAIRSEQS.keys()} == {
        "nbest": 0,
        "beam_sampling": False,
        "seed": 1,
        "diversity_discount": 1.0,
        "diversity_candidate_multiple": 1,
        "penalty_alpha": 0.0,
        "forced_bos_token_id": None,
        "suppress_tokens": (),
        "begin_suppress_tokens": (),
        "bad_words_ids": (),
        "sequence_bias": (),
        "encoder_repetition_penalty": 1.0,
        "encoder_no_repeat_ngram_size": 0,
        "exponential_decay_length_penalty": None,
        "renormalize_logits": False,
        "min_p": 0.0,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
        "repetition_penalty": 1.0,
        "early_stopping": True,
    }
    assert GenerationOptions.from_kwargs(beam=4, lenpen=2) == GenerationOptions(4, lenpen=2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lenpenalty": 2.0}, "no generation option 'lenpenalty'; did you mean 'lenpen'?"),
        ({"max_len": 9}, "no generation option 'max_len'; here it is max_len_b"),
        ({"num_beams": 9}, "no generation option 'num_beams'; here it is beam"),
        ({"zzz": 9}, "no generation option 'zzz'; choose from beam, nbest, max_len_a, "),
    ],
)
def test_an_unknown_option_is_refused(kwargs, message):
    with pytest.raises(TypeError, match=message.replace("?", r"\?")):
        GenerationOptions.from_kwargs(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beam": 0}, "beam must be at least 1, not 0"),
        ({"beam": 2.0}, "beam must be of type int, not 2.0"),
        ({"beam": True}, "beam must be of type int, not True"),
        ({"min_len": -1}, "min_len must be at least 0, not -1"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be at least 0, not -1"),
        ({"temperature": 0.0}, "temperature must be greater than 0, not 0.0"),
        ({"temperature": float("nan")}, "temperature must be of type float, not nan"),
        ({"lenpen": "1"}, "lenpen must be of type float, not '1'"),
        ({"unnormalized": 1}, "unnormalized must be of type bool, not 1"),
        ({"nbest": 6}, "nbest=6 is more than the beam=5 hypotheses .*; raise beam"),
        ({"sampling": True, "sampling_topp": 0.0}, "sampling_topp must be greater than 0 and at"),
        ({"sampling": True, "sampling_topp": 1.5}, "at most 1, or -1 for none, not 1.5"),
        (
            {"sampling": True, "sampling_topk": 0},
            "sampling_topk must be at least 1, or -1 for none",
        ),
        ({"diverse_beam_groups": 0}, "diverse_beam_groups must be at least 1, or -1 for none"),
        ({"diverse_beam_groups": 2}, "beam=5 cannot be divided into 2 groups"),
        ({"diversity_rate": -0.5}, "diversity_rate must be at least 0, or -1 for none, not -0.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be greater than 0, not 0.0"),
        ({"early_stopping": "never!"}, "early_stopping must be of type bool or 'never', not"),
        ({"constraints": "any"}, "constraints must be 'ordered' or 'unordered' or None, not 'any'"),
        ({"suppress_tokens": (1.5,)}, "suppress_tokens must be a list of ids, not"),
        ({"temperature": 1e-45}, "temperature must be at least 1e-06 in size, not 1e-45"),
        ({"unkpen": -1e39}, "unkpen must be at most 1e\\+06 in size, not -1e\\+39"),
        ({"sampling": True, "min_p": 1.5}, "min_p must be from 0 \\(for none\\) to 1, not 1.5"),
        ({"sampling": True, "typical_p": 0.0}, "typical_p must be greater than 0 and at most 1"),
        ({"sampling": True, "epsilon_cutoff": 1.0}, "epsilon_cutoff must be from 0 .* below 1"),
        ({"sampling": True, "eta_cutoff": -0.1}, "eta_cutoff must be from 0 .*, not -0.1"),
        ({"encoder_repetition_penalty": 0.0}, "encoder_repetition_penalty must be greater than 0"),
        ({"encoder_no_repeat_ngram_size": -1}, "encoder_no_repeat_ngram_size must be at least 0"),
        ({"bad_words_ids": [5]}, r"bad_words_ids must be a list of lists of ids, not \(5,\)"),
        ({"bad_words_ids": [[5], []]}, "bad_words_ids holds a sequence without any id; leave it"),
        ({"sequence_bias": {5: 1.0}}, "sequence_bias must be pairs of a list of ids and a number"),
        ({"sequence_bias": {(5,): -np.inf}}, "pairs of a list of ids and a number, not .*inf"),
        ({"sequence_bias": {(5,): 1e9}}, "sequence_bias must be at most 1e\\+06 in size, not"),
        ({"sequence_bias": {(): 1.0}}, "sequence_bias holds a sequence without any id"),
        ({"exponential_decay_length_penalty": 1.5}, "must be a pair of a length and a factor or N"),
        ({"exponential_decay_length_penalty": (5, 0)}, "a start from 0 and a factor greater than"),
        ({"penalty_alpha": 1.5}, "penalty_alpha must be from 0 to 1, not 1.5"),
    ],
)
def test_a_value_out_of_range_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**kwargs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"sampling": True, "match_source_len": True},
            "sampling and match_source_len exclude each",
        ),
        ({"diverse_beam_groups": 5, "diversity_rate": 0.5}, "exclude each other: each is a search"),
        (
            {"constraints": "ordered", "beam_sampling": True},
            "beam_sampling and constraints exclude",
        ),
        ({"sampling_topk": 3}, "sampling_topk=3 has no meaning in beam search; it goes with sampl"),
        ({"min_p": 0.1}, "min_p=0.1 has no meaning in beam search; it goes with sampling or beam_"),
        ({"penalty_alpha": 0.6, "beam": 1, "sampling_topp": 0.5}, "no meaning in penalty_alpha"),
        (
            {"diversity_discount": 0.5},
            "no meaning in beam search; it goes with diverse_beam_groups",
        ),
        (
            {"penalty_alpha": 0.6, "sampling_topk": 4},
            "it needs beam=1 and sampling_topk, not beam=5",
        ),
        ({"penalty_alpha": 0.6, "beam": 1}, "at least 2 candidates"),
        (
            {"seed": 2},
            "seed=2 has no meaning in beam search; it goes with sampling or",
        ),
        ({"unnormalized": True, "lenpen": 2.0}, "lenpen=2.0 has no meaning with unnormal"),
        (
            {"match_source_len": True, "max_len_b": 9},
            "max_len_b=9 has no meaning with match_so",
        ),
        ({"match_source_len": True, "max_len_a": 1.0}, "max_len_a=1.0 has no meaning with match_"),
        (
            {"sampling": True, "early_stopping": False},
            "early_stopping=False has no meaning with sam",
        ),
    ],
)
def test_what_excludes_each_other_is_refused_with_the_reason(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**kwargs)


def test_a_length_penalty_of_one_goes_with_unnormalized():
    GenerationOptions(unnormalized=True, lenpen=1.0)


def test_numpys_numbers_are_numbers():
    assert GenerationOptions(beam=np.int64(3), lenpen=np.float32(2)).beam == 3


def test_lists_arrays_and_mappings_are_the_same():
    pairs = ((5, 6), 1.5), ((7,), -2)
    for given in (dict(pairs), [[[5, 6], 1.5], [[7], -2]], [[np.array([5, 6]), 1.5], pairs[1]]):
        options = GenerationOptions(sequence_bias=given)
        assert options == GenerationOptions(sequence_bias=pairs) and hash(options)
    assert GenerationOptions(bad_words_ids=np.array([[5, 6]])).bad_words_ids == ((5, 6),)


def test_limits_follow_from_each_rows_own_length():
    least, greatest = GenerationOptions(max_len_a=1.2, max_len_b=3, min_len=2).length_limits(
        [1, 5, 100], 30
    )
    assert least.tolist() == [2, 2, 2]
    assert greatest.tolist() == [4, 9, 29]  # int(1.2 n + 3), but at most the positions less one


def test_limits_of_match_source_len():
    least, greatest = GenerationOptions(match_source_len=True).length_limits([4, 9, 50], 30)
    assert least.tolist() == greatest.tolist() == [3, 8, 29]  # and </s>


def test_no_length_is_too_large():
    _, greatest = GenerationOptions(max_len_b=10**30).length_limits([4], 30)
    assert greatest.tolist() == [29]
    with pytest.raises(ValueError, match="min_len=1000000000000000000000 is larger than .* of 29"):
        GenerationOptions(min_len=10**21, max_len_b=10**30).length_limits([4], 30)


def test_min_len_above_the_greatest_length_names_the_input():
    message = r"min_len=8 is larger than the greatest length of 7 tokens for input 1 \(2 tokens\)"
    with pytest.raises(ValueError, match=message):
        GenerationOptions(max_len_a=1, max_len_b=5, min_len=8).length_limits([9, 2], 30)
    with pytest.raises(ValueError, match="min_len=5 is larger .* of 3 tokens for input 0"):
        GenerationOptions(match_source_len=True, min_len=5).length_limits([4], 30)
