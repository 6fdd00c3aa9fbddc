"""Names from elsewhere are answered with ours, and only with names that there are."""

import dataclasses
import re

import pytest

from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.other_names import _INSTEAD, instead_of

OPTIONS = {field.name for field in dataclasses.fields(GenerationOptions)}
# What `generate` and its kin take beside options, and methods.
ARGUMENTS = {"prefix_tokens", "lm", "encoder_out", "attention", "batch_size", "stream", "score"}
ARGUMENTS |= {"logits_processor", "stop_strings"}


@pytest.mark.parametrize(
    ("name", "ours"),
    [("num_beams", "beam"), ("length_penalty", "lenpen"), ("top_k", "sampling_topk, with samp")],
)
def test_a_name_from_elsewhere_is_answered_with_ours(name, ours):
    with pytest.raises(TypeError, match=f"no generation option '{name}'; here it is {ours}"):
        GenerationOptions.from_kwargs(**{name: 4})


@pytest.mark.parametrize("name", sorted(_INSTEAD))
def test_every_answer_is_true(name):
    assert name not in OPTIONS
    answer = instead_of(name)
    first = re.match(r"\w+", answer)[0]
    assert first in OPTIONS | ARGUMENTS | {"nothing", "the", "an"}


@pytest.mark.parametrize("name", ["min_p", "typical_p", "bad_words_ids", "begin_suppress_tokens"])
def test_transformers_own_names_are_ours_where_fairseq_has_none(name):
    assert name in OPTIONS and instead_of(name) is None


def test_unknown_names_have_no_answer():
    assert instead_of("beam") is None and instead_of("zzz") is None
