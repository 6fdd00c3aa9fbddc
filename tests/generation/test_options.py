"""Generation options: fairseq's names and defaults, and errors in one line."""

import dataclasses

import numpy as np
import pytest

from bart_hk.generation.options import GenerationOptions


def test_defaults_are_fairseqs():
    assert dataclasses.asdict(GenerationOptions()) == {
        "beam": 5,
        "max_len_a": 0.0,
        "max_len_b": 200,
        "min_len": 1,
        "lenpen": 1.0,
        "unnormalized": False,
        "unkpen": 0.0,
        "temperature": 1.0,
        "no_repeat_ngram_size": 0,
        "match_source_len": False,
    }
    assert GenerationOptions.from_kwargs(beam=4, lenpen=2) == GenerationOptions(4, lenpen=2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"lenpenalty": 2.0}, "no generation option 'lenpenalty'; did you mean 'lenpen'?"),
        ({"max_len": 9}, "no generation option 'max_len'; did you mean 'max_len_"),
        ({"zzz": 9}, "no generation option 'zzz'; choose from beam, max_len_a, "),
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
    ],
)
def test_a_value_out_of_range_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        GenerationOptions(**kwargs)


def test_numpys_numbers_are_numbers():
    assert GenerationOptions(beam=np.int64(3), lenpen=np.float32(2)).beam == 3


def test_limits_follow_from_each_rows_own_length():
    least, greatest = GenerationOptions(max_len_a=1.2, max_len_b=3, min_len=2).length_limits(
        [1, 5, 100], 30
    )
    assert least.tolist() == [2, 2, 2]
    assert greatest.tolist() == [4, 9, 29]  # int(1.2 n + 3), but at most the positions less one


def test_limits_of_match_source_len():
    least, greatest = GenerationOptions(match_source_len=True).length_limits([4, 9, 50], 30)
    assert least.tolist() == greatest.tolist() == [3, 8, 29]  # and </s>


def test_min_len_above_the_greatest_length_names_the_input():
    message = r"min_len=8 is larger than the greatest length of 7 tokens for input 1 \(2 tokens\)"
    with pytest.raises(ValueError, match=message):
        GenerationOptions(max_len_a=1, max_len_b=5, min_len=8).length_limits([9, 2], 30)
    with pytest.raises(ValueError, match="min_len=5 is larger .* of 3 tokens for input 0"):
        GenerationOptions(match_source_len=True, min_len=5).length_limits([4], 30)
