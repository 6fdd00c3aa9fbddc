"""Searches beside transformers' `generate`, on models that fairseq trained, saved by us.

What makes the two agree, option by option:

* lengths: `max_new_tokens` is `max_len_b` + 1, for `</s>` is a token there; `min_length` is
  `min_len` + 1, for the start token is one; `length_penalty` is `lenpen`.
* Forced tokens are certain there, and as probable as the model says here (fairseq's rule). The ids
  of a greedy search are the same for all that. Beams are compared with fairseq's rule on both
  sides; with transformers' where `lenpen` is 0, and no hypothesis is as long as it may be.
* `decoder_input_ids` count neither in a length nor in a score there, and do both here. So beams
  are compared with `lenpen` 0.
* `early_stopping=True`: the beams that end in the very step that fills the last place compete for
  all places there; here they take the free ones. The best hypothesis is the same.
* `prefix_allowed_tokens_fn` has fairseq's W candidates here, and 2 W there: a greedy search is the
  same.
* `temperature` only matters there where it samples.
* <pad> may be chosen there. It hardly is, but where probabilities are normalised it would count.

Contrastive search, diverse beam groups and constraints are no longer in transformers 4.57.6: the
first is compared with its published definition, the others with fairseq's (`tests/generation`).
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from bart_hk.checkpoint.fairseq import from_fairseq
from bart_hk.checkpoint.huggingface import write_model
from bart_hk.config import BARTConfig
from bart_hk.generation.generator import Generator
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.sampling import truncate
from bart_hk.generation.stops import Stops
from bart_hk.generation.trie import Trie
from bart_hk.model import BART
from tests.generation.conftest import INPUTS
from tests.generation.test_edits import FILTERS, filtering
from tests.generation.test_fairseq import perturbed
from tests.generation.test_stops import LETTERS

SENTENCES = 12
# Ours, and what transformers is given beside `num_beams`, `max_new_tokens` and what
# `generate_arguments` translates.
OURS_FORCED = {"keep_chances": True}
GREEDY = {
    "greedy": ({}, OURS_FORCED),
    "greedy_repetition_1.2": ({"repetition_penalty": 1.2}, OURS_FORCED),
    "greedy_repetition_3": ({"repetition_penalty": 3.0, "min_len": 5}, OURS_FORCED),
    "greedy_repetition_0.7": ({"repetition_penalty": 0.7}, OURS_FORCED),
    "greedy_no_repeat_2": ({"no_repeat_ngram_size": 2}, OURS_FORCED),
    "greedy_no_repeat_3": ({"no_repeat_ngram_size": 3, "min_len": 14}, OURS_FORCED),
    "greedy_min_len": ({"min_len": 9}, OURS_FORCED),
    "greedy_suppressed": ({"suppress_tokens": (5, 6, 11, 16, 23, 41)}, OURS_FORCED),
    "greedy_forced_bos": ({"forced_bos_token_id": 9}, {"forced_bos_token_id": 9}),
    "greedy_forced_eos": ({"max_len_b": 4}, {"forced_eos_token_id": 2}),
    "greedy_prefix": ({}, {"prefixes": True}),
    "greedy_prefix_repetition": ({"repetition_penalty": 1.5}, {"prefixes": True}),
    "greedy_trie": ({}, {"trie": True}),
    "greedy_together": (
        {
            "repetition_penalty": 1.3,
            "no_repeat_ngram_size": 3,
            "min_len": 8,
            "suppress_tokens": (12, 13),
        },
        OURS_FORCED,
    ),
}
BEAMS = {
    f"beam_{stopping}_{lenpen}": ({"early_stopping": stopping, "lenpen": lenpen}, OURS_FORCED)
    for stopping in (True, False, "never")
    for lenpen in (0.0, 0.5, 1.0, 2.0, -0.5)
} | {
    "beam_no_repeat": ({"no_repeat_ngram_size": 2, "early_stopping": False}, OURS_FORCED),
    "beam_min_len": ({"min_len": 8, "early_stopping": "never", "lenpen": 0.6}, OURS_FORCED),
    "beam_suppressed": (
        {"suppress_tokens": (5, 6, 11, 16), "early_stopping": False, "lenpen": 1.5},
        OURS_FORCED,
    ),
    "beam_repetition": ({"repetition_penalty": 1.4, "early_stopping": False}, OURS_FORCED),
    "beam_repetition_0.8": ({"repetition_penalty": 0.8, "early_stopping": "never"}, OURS_FORCED),
    "beam_repetition_true": ({"repetition_penalty": 2.0, "lenpen": 0.5}, OURS_FORCED),
    "beam_short": ({"max_len_b": 5, "early_stopping": False, "lenpen": 2.0}, OURS_FORCED),
    "beam_short_never": ({"max_len_b": 6, "early_stopping": "never"}, OURS_FORCED),
    "beam_8": ({"beam": 8, "early_stopping": "never", "nbest": 3}, OURS_FORCED),
    "beam_2": ({"beam": 2, "early_stopping": False, "no_repeat_ngram_size": 3}, OURS_FORCED),
    "beam_forced_bos": (
        {"lenpen": 0.0, "early_stopping": False, "forced_bos_token_id": 0},
        {"forced_bos_token_id": 0},
    ),
    "beam_forced_bos_other": (
        {"lenpen": 0.0, "early_stopping": "never", "forced_bos_token_id": 20},
        {"forced_bos_token_id": 20},
    ),
    "beam_prefix": ({"lenpen": 0.0, "early_stopping": False}, {"prefixes": True}),
    "beam_prefix_never": (
        {"lenpen": 0.0, "early_stopping": "never", "beam": 3, "no_repeat_ngram_size": 2},
        {"prefixes": True},
    ),
}
# transformers' own options. What a forced token costs differs, so beams are compared with `lenpen`
# 0, and where it costs nothing on both sides: what is left to be chosen is normalised.
CERTAIN = {"forced_bos_token_id": 0, "forced_eos_token_id": 2}
SAME_NAMES = {
    "bad_words": {"bad_words_ids": [[5], [6], [11, 12], [16, 17, 18], [23, 16], [7, 7]]},
    "bias": {"sequence_bias": [[[5], -2.0], [[6, 11], 3.0], [[7, 8], -4.0], [[16, 23, 41], 5.0]]},
    "encoder_repetition": {"encoder_repetition_penalty": 1.5},
    "encoder_repetition_less": {"encoder_repetition_penalty": 0.5},
    "encoder_ngrams_1": {"encoder_no_repeat_ngram_size": 1},
    "encoder_ngrams_2": {"encoder_no_repeat_ngram_size": 2},
    "encoder_ngrams_3": {"encoder_no_repeat_ngram_size": 3},
    "decay": {"exponential_decay_length_penalty": [3, 1.3]},
    "decay_less": {"exponential_decay_length_penalty": [1, 0.6]},
    "begin": {"begin_suppress_tokens": list(range(4, 24))},
    "own_together": {
        "bad_words_ids": [[5], [11, 12]],
        "sequence_bias": [[[6, 11], 3.0], [[7], -1.0]],
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 3,
        "encoder_repetition_penalty": 1.2,
        "encoder_no_repeat_ngram_size": 3,
        "begin_suppress_tokens": [8, 9],
        "suppress_tokens": [41],
        "min_len": 5,
    },
    # Where </s> is forbidden as well, transformers makes a NaN of it.
    "decay_together": {
        "sequence_bias": [[[11], -3.0]],
        "repetition_penalty": 1.3,
        "encoder_repetition_penalty": 1.4,
        "exponential_decay_length_penalty": [6, 1.1],
        "min_len": 6,
    },
}
STRINGS = ["ab", "cd", "dda"]
OWN = {
    f"{kind}_stop_strings_{stopping}": (
        {"beam": beam, "lenpen": lenpen, "early_stopping": stopping, "renormalize_logits": True},
        {**CERTAIN, "stops": {"letters": [one.decode() for one in LETTERS], "strings": STRINGS}},
    )
    for kind, beam, lenpen, stopping in (
        ("greedy", 1, 1.0, True),
        ("beam", 4, 1.0, False),
        ("beam", 4, 0.0, "never"),
        ("beam", 3, 2.0, True),
    )
}
for _name, _ours in SAME_NAMES.items():
    OWN[f"greedy_{_name}"] = ({"beam": 1, **_ours}, CERTAIN)
    _beams = {"beam": 4, "lenpen": 0.0, "early_stopping": False}
    if _name != "encoder_ngrams_1":  # it forbids </s>
        OWN[f"beam_{_name}"] = ({**_beams, **_ours}, {"forced_bos_token_id": 0})
    _beams |= {"lenpen": 1.0, "renormalize_logits": True}
    OWN[f"beam_{_name}_normalised"] = ({**_beams, **_ours}, CERTAIN)
CONTRASTIVE = {
    f"contrastive_{alpha}_{k}": ({"penalty_alpha": alpha, "sampling_topk": k}, {})
    for alpha, k in ((0.3, 4), (0.6, 4), (0.6, 10), (0.9, 3), (0.05, 2))
}
SETS = {
    **{name: ({"beam": 1, **ours}, theirs) for name, (ours, theirs) in GREEDY.items()},
    **{name: ({"beam": 4, **ours}, theirs) for name, (ours, theirs) in BEAMS.items()},
    **{name: ({"beam": 1, **ours}, theirs) for name, (ours, theirs) in CONTRASTIVE.items()},
    **OWN,
}
TRANSFORMERS_NAMES = {name for ours in SAME_NAMES.values() for name in ours} - {"min_len"}
MODELS = ("trained", "perturbed")  # transformers has no network like the other trained one


def generate_arguments(ours, theirs, longest, prefixes, trie):
    """The case for `oracle_generation.py`."""
    max_len = ours.get("max_len_b", longest)
    if "penalty_alpha" in ours:
        alpha, k = ours["penalty_alpha"], ours["sampling_topk"]
        return {"penalty_alpha": alpha, "top_k": k, "max_length": max_len + 2}
    case = {
        "num_beams": ours["beam"],
        "num_return_sequences": ours.get("nbest", ours["beam"]),
        "do_sample": False,
        "max_new_tokens": max_len + 1,
        "min_length": ours.get("min_len", 1) + 1,
        "length_penalty": ours.get("lenpen", 1.0),
        "early_stopping": ours.get("early_stopping", True),
        "renormalize_logits": ours.get("renormalize_logits", False),
        **{name: ours[name] for name in TRANSFORMERS_NAMES & ours.keys()},
        **theirs,
    }
    if "forced_eos_token_id" in theirs:  # <pad> is no choice here
        case["suppress_tokens"] = [*case.get("suppress_tokens", ()), 1]
    if theirs.get("prefixes"):  # transformers counts what is generated after them
        case["prefixes"] = prefixes
        case["max_length"] = case.pop("max_new_tokens") + 1
    if theirs.get("trie"):
        case["trie"] = trie
    return case


@pytest.fixture(scope="module")
def answers(golden, oracle, tmp_path_factory):
    """Of each model: the case, config and parameters, and what transformers found."""
    found = {}
    for name in MODELS:
        folder = tmp_path_factory.mktemp(name)
        case = golden("generation/cases.json")["models"]["post_norm"]
        config = BARTConfig(**case["config"])
        state = load_file(INPUTS / case["weights"])
        params, _ = from_fairseq(perturbed(state) if name == "perturbed" else state, config)
        # transformers has one length for source and target: rows that nothing is long enough for.
        positions = (config.max_source_positions, config.max_target_positions)
        config = config.replace(max_source_positions=max(positions))
        config = config.replace(max_target_positions=max(positions))
        for side, size in zip(("encoder", "decoder"), positions, strict=True):
            table = params[f"{side}/embed_positions"]
            room = ((0, max(positions) - size), (0, 0))
            table["embeddings"] = np.pad(table["embeddings"], room)
        write_model(folder / "model", config, params)
        sources = case["sources"][:SENTENCES]
        longest = min(positions[1], 32) - 2
        prefixes = [target[: 1 + i % 5] for i, target in enumerate(case["targets"][:SENTENCES])]
        trie = case["inputs"]["trie"]["allowed"]["trie"]
        sets = {
            key: generate_arguments(*pair, longest, prefixes, trie) for key, pair in SETS.items()
        }
        (folder / "cases.json").write_text(json.dumps({"sources": sources, "sets": sets}))
        oracle("oracle_generation.py", folder)
        theirs = json.loads((folder / "found.json").read_text())
        generator = Generator(BART(config))
        found[name] = (sources, longest, prefixes, trie, generator, params, theirs)
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SETS)
def test_hypotheses_equal_transformers(answers, model, name):
    sources, longest, prefixes, trie, generator, params, found = answers[model]
    ours, theirs = SETS[name]
    arguments = {}
    if theirs.get("prefixes"):
        arguments["prefix_tokens"] = prefixes
    if theirs.get("trie"):
        arguments["prefix_allowed_tokens_fn"] = Trie(trie)
    if theirs.get("stops"):
        arguments["stops"] = Stops.of(STRINGS, LETTERS, is_stripped=False)
    options = GenerationOptions(**{"max_len_b": longest, **ours})
    rows = [np.array(source) for source in sources]
    generated = generator.generate(params, rows, options, **arguments)
    config = generator.bart.config
    start, pad, eos = config.decoder_start_token_id, config.pad_token_id, config.eos_token_id
    best_only = options.beam > 1 and options.early_stopping is True
    scored = options.beam > 1 and (theirs is OURS_FORCED or options.renormalize_logits)
    for i, (hypotheses, their) in enumerate(zip(generated, found[name], strict=True)):
        ids = [[start, *h["tokens"]] for h in hypotheses]
        expected = [[*row[:1], *stripped(row[1:], pad, eos)] for row in their["ids"]]
        if best_only:
            ids, expected = ids[:1], expected[:1]
        assert ids == expected, f"sentence {i}"
        if scored:
            scores = [float(h["score"]) for h in hypotheses]
            n = len(ids)
            np.testing.assert_allclose(scores[:n], their["scores"][:n], atol=1e-4)


@pytest.mark.parametrize("method", ["sampling", "beam_sampling"])
def test_filters_equal_transformers(oracle, tmp_path, method):
    """What is left of distributions, flat and steep, to draw from."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, [[0.3], [1], [2], [3], [5]] * 20, (100, 60)).astype(np.float32)
    fewest = 2 if method == "beam_sampling" else 1
    cases = {"logits": logits.tolist(), "fewest": fewest, "sets": FILTERS}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    oracle("oracle_filters.py", tmp_path)
    theirs = json.loads((tmp_path / "found.json").read_text())
    for name, filters in FILTERS.items():
        found = truncate(logits.T[:, None], *filtering(filters, method))
        np.testing.assert_array_equal(np.isfinite(found[:, 0].T), theirs[name], err_msg=name)


def stripped(row, pad, eos):
    """`row` up to its `</s>`, without the padding behind it."""
    return row[: row.index(eos) + 1] if eos in row else [i for i in row if i != pad]


@pytest.mark.parametrize("model", MODELS)
def test_the_cases_differ(answers, model):
    *_, found = answers[model]

    def ids(name):
        return [row["ids"] for row in found[name]]

    assert len({str(row) for row in ids("greedy")}) > SENTENCES / 2  # they say different things
    for names, plain in ((GREEDY, "greedy"), (CONTRASTIVE, "greedy")):
        changed = [name for name in names if ids(name) != ids(plain)]
        assert len(changed) >= len(names) - 2
    # Their options change what is found, but for an n-gram that no output had anyway.
    for plain, like in (("greedy", "greedy_{}"), ("beam_False_0.0", "beam_{}")):
        names = {like.format(name) for name in SAME_NAMES} & OWN.keys()
        same = [name for name in names if ids(name) == ids(plain)]
        assert len(same) <= 1, same
    # The three meanings of early_stopping.
    for lenpen in (1.0, 2.0):
        modes = [ids(f"beam_{mode}_{lenpen}") for mode in (True, False, "never")]
        assert modes[0] != modes[1] != modes[2]
