"""What a `generation_config.json` asks for, in our words."""

import json
import warnings
from pathlib import Path

import pytest

import bart_hk
from bart_hk.config import BARTConfig
from bart_hk.generation.presets import options_of
from bart_hk.hub import BARTHubInterface
from bart_hk.text import TextEncoder
from tests.parameters import random_params


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        # facebook/bart-large-cnn's
        (
            {
                "_from_model_config": True,
                "early_stopping": True,
                "length_penalty": 2.0,
                "max_length": 142,
                "min_length": 56,
                "no_repeat_ngram_size": 3,
                "num_beams": 4,
            },
            {
                "beam": 4,
                "lenpen": 2.0,
                "max_len_b": 140,
                "min_len": 55,
                "no_repeat_ngram_size": 3,
                "early_stopping": True,
            },
        ),
        ({"num_beams": 3}, {"beam": 3, "early_stopping": False}),
        ({}, {"beam": 1}),
        ({"length_penalty": 2.0, "early_stopping": True, "top_k": 5}, {"beam": 1}),
        ({"max_length": 20, "max_new_tokens": 7, "min_new_tokens": 2, "min_length": 0},
         {"beam": 1, "max_len_b": 6, "min_len": 2}),
        (
            {"do_sample": True, "top_p": 0.9, "temperature": 0.5, "num_return_sequences": 3},
            {
                "sampling": True,
                "sampling_topk": 50,
                "sampling_topp": 0.9,
                "temperature": 0.5,
                "beam": 3,
                "nbest": 3,
            },
        ),
        ({"do_sample": True, "num_beams": 2, "top_k": 0, "top_p": 1.0},
         {"beam_sampling": True, "beam": 2}),
        (
            {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.2},
            {"beam": 6, "diverse_beam_groups": 3, "diverse_beam_strength": 0.2},
        ),
        ({"do_sample": True, "top_k": 0, "min_p": 0.1, "typical_p": 0.9},
         {"sampling": True, "beam": 1, "min_p": 0.1, "typical_p": 0.9}),
        ({"min_p": 0.1, "bad_words_ids": [[5, 6]], "encoder_no_repeat_ngram_size": 0},
         {"beam": 1, "bad_words_ids": [[5, 6]], "encoder_no_repeat_ngram_size": 0}),
        ({"penalty_alpha": 0.6, "top_k": 4}, {"beam": 1, "penalty_alpha": 0.6, "sampling_topk": 4}),
        (
            {"repetition_penalty": 1.2, "suppress_tokens": [4], "use_cache": False,
             "output_scores": True, "num_assistant_tokens": 20, "guidance_scale": None},
            {"beam": 1, "repetition_penalty": 1.2, "suppress_tokens": [4]},
        ),
    ],
)  # fmt: skip
def test_transformers_names_become_ours(asked, options):
    assert options_of(asked) == options


def test_what_there_is_no_option_for_is_named():
    with pytest.raises(ValueError, match="asks for watermarking_config=.*give the options themsel"):
        options_of({"watermarking_config": {"bias": 2.5}})
    with pytest.raises(ValueError, match="temperature must be greater than 0"):
        options_of({"do_sample": True, "temperature": 0.0})


@pytest.fixture
def folder(tmp_path) -> Path:
    config = BARTConfig(
        encoder_embed_dim=16,
        encoder_ffn_embed_dim=16,
        decoder_ffn_embed_dim=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        max_source_positions=32,
        max_target_positions=32,
    )
    BARTHubInterface(config, random_params(config, 0.3), TextEncoder.gpt2()).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_a_folders_own_options_are_there_to_be_used(folder, name):
    """In an old folder config.json says it."""
    assert bart_hk.load(folder).generation_config == {}
    if name == "config.json":
        (folder / "generation_config.json").unlink()
    asked = {"num_beams": 2, "max_length": 9, "length_penalty": 0.5}
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **asked}))
    bart = bart_hk.load(folder)
    options = {"beam": 2, "max_len_b": 7, "lenpen": 0.5, "early_stopping": False}
    assert bart.generation_config == options
    bart.save(folder / "again")
    assert bart_hk.load(folder / "again").generation_config == options
    stored = json.loads((folder / "again" / "generation_config.json").read_text())
    assert asked.items() <= stored.items()


def test_another_forced_end_is_said_to_be_none(folder):
    content = json.loads((folder / "generation_config.json").read_text())
    for last, said in ((2, 0), (None, 0), (7, 1)):
        content["forced_eos_token_id"] = last
        (folder / "generation_config.json").write_text(json.dumps(content))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            bart_hk.load(folder)
        assert len(caught) == said
    assert "asks for forced_eos_token_id=7 " in str(caught[0].message)
