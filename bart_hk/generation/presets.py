"""Options that papers and model folders ask for: `bart.sample(texts, **PRESETS["cnn"])`."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bart_hk.generation.options import GenerationOptions

# fairseq `examples/bart/README.summarization.md`, what the published ROUGE scores were made with.
PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "cnn": MappingProxyType(
            {"beam": 4, "lenpen": 2.0, "max_len_b": 140, "min_len": 55, "no_repeat_ngram_size": 3}
        ),
        "xsum": MappingProxyType(
            {"beam": 6, "lenpen": 1.0, "max_len_b": 60, "min_len": 10, "no_repeat_ngram_size": 3}
        ),
    }
)

# transformers' name -> ours, and what to add: a length there counts the start token or `</s>`.
_RENAMED = {
    "num_beams": ("beam", 0),
    "num_return_sequences": ("nbest", 0),
    "max_length": ("max_len_b", -2),
    "max_new_tokens": ("max_len_b", -1),  # it wins, as there
    "min_length": ("min_len", -1),
    "min_new_tokens": ("min_len", 0),
    "length_penalty": ("lenpen", 0.0),
    "num_beam_groups": ("diverse_beam_groups", 0),
    "diversity_penalty": ("diverse_beam_strength", 0.0),
    "top_k": ("sampling_topk", 0),
    "top_p": ("sampling_topp", 0.0),
}
# What transformers takes for an option that is not there, as far as it asks for nothing.
_NOTHING = {
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "num_return_sequences": 1,
    "min_length": 0,
    "penalty_alpha": 0.0,
    "top_p": 1.0,
}
_OF_SAMPLES = (
    "top_k",
    "top_p",
    "temperature",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
)
_OURS = {field.name for field in dataclasses.fields(GenerationOptions)}
# Beginnings of names that say how results are handed over, or how fast.
_NO_SEARCH = tuple(
    "_from_ transformers_ output_ return_ use_cache cache_ disable_ low_memory prefill_ "
    "prompt_lookup assistant_ num_assistant target_lookbehind".split()
)


def options_of(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """The options that transformers' `generate` takes from a `generation_config.json`, under our
    names.

    Lengths are ours, which count neither the start token nor `</s>`. Options of samples count where
    something is sampled. What forces a token is no option but the model's own.

    Raises:
        ValueError: the file asks for something that there is no option for.
    """
    config = {
        name: value
        for name, value in generation_config.items()
        if value is not None and value != _NOTHING.get(name) and not name.startswith(_NO_SEARCH)
    }
    beams, samples = config.get("num_beams", 1), config.pop("do_sample", False)
    options: dict[str, Any] = {"beam": beams}
    if samples:
        options["beam_sampling" if beams > 1 else "sampling"] = True
        config.setdefault("top_k", 50)
    elif beams > 1 and "num_beam_groups" not in config:
        config.setdefault("early_stopping", False)
    if beams == 1:
        for name in ("length_penalty", "early_stopping"):  # of one hypothesis they change nothing
            config.pop(name, None)
    contrastive = "penalty_alpha" in config
    for name in _OF_SAMPLES:
        if not samples and not (contrastive and name == "top_k"):
            config.pop(name, None)
    if config.get("top_k") == 0:
        config.pop("top_k")
    # As there, max_new_tokens and min_new_tokens win: they come last.
    for name in sorted(config, key=lambda name: name.endswith("new_tokens")):
        value = config[name]
        ours, added = _RENAMED.get(name, (name, None))
        if ours not in _OURS and not value:
            continue
        if ours not in _OURS:
            raise ValueError(
                f"generation_config.json asks for {name}={value!r}, for which there is no option; "
                "give the options themselves"
            )
        options[ours] = value if added is None else value + added
    if "sampling" in options:
        options["beam"] = options.get("nbest", 1)
    GenerationOptions.from_kwargs(**options)
    return options
