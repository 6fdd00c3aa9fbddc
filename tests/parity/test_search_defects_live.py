"""What the real fairseq's searches do wrong, beside what ours do.

`tools/goldens/_search_strategies.py` repairs these before searches are recorded.
"""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from bart_hk.checkpoint.fairseq import from_fairseq
from bart_hk.config import BARTConfig
from bart_hk.generation.generator import Generator
from bart_hk.generation.options import GenerationOptions
from bart_hk.model import BART
from tests.generation.conftest import INPUTS

EOS = 2
GROUPS = {"beam": 4, "diverse_beam_groups": 2, "diverse_beam_strength": 1.0}


@pytest.fixture(scope="module")
def both(golden, oracle, tmp_path_factory):
    """fairseq's answers, the sources, and `ours(options, rows, ...)`: tokens of hypotheses."""
    case = golden("generation/cases.json")["models"]["post_norm"]
    folder = tmp_path_factory.mktemp("defects")
    sources = case["sources"][:8]
    asked = {"config": case["config"], "weights": str(INPUTS / case["weights"])}
    asked |= {"sources": sources, "phrase": [20, 31]}
    (folder / "case.json").write_text(json.dumps(asked))
    oracle("oracle_search_defects.py", folder)
    config = BARTConfig(**case["config"])
    params, _ = from_fairseq(load_file(INPUTS / case["weights"]), config)
    generator = Generator(BART(config))

    def ours(options, rows=sources, **arguments):
        rows = [np.array(row) for row in rows]
        found = generator.generate(params, rows, GenerationOptions(**options), **arguments)
        return [[h["tokens"].tolist() for h in hypotheses] for hypotheses in found]

    return json.loads((folder / "found.json").read_text()), sources, ours


def repeats_a_pair(tokens):
    pairs = list(zip(tokens, tokens[1:], strict=False))
    return len(set(pairs)) < len(pairs)


def test_diverse_groups_do_not_depend_on_numbers_of_sentences(both):
    theirs, sources, ours = both
    whole, first_four, dataset = (answer["found"] for answer in theirs["groups"])
    assert first_four == whole[:4]
    # fairseq looks up what groups had in common at the numbers that sentences have in a data set.
    assert dataset == {"error": "IndexError"}
    found = ours(GROUPS)
    assert found[4:] == ours(GROUPS, sources[4:])
    assert found[::-1] == ours(GROUPS, sources[::-1])


def test_repeated_ngrams_are_blocked(both):
    theirs, _, ours = both
    without, with_it = (theirs["no_repeat_ngram_size"][n] for n in ("0", "2"))
    assert with_it == without  # on a CPU, fairseq compares with padding
    assert any(repeats_a_pair(h) for hypotheses in with_it for h in hypotheses)
    options = {"beam": 4, "min_len": 16}
    assert ours(options) == without
    found = ours({**options, "no_repeat_ngram_size": 2})
    assert not any(repeats_a_pair(h) for hypotheses in found for h in hypotheses)


def test_matched_lengths_are_the_sources(both):
    theirs, sources, ours = both
    sizes = [len(source) for source in sources]
    assert [len(h[0]) for h in theirs["match_source_len"]] == [size + 1 for size in sizes]
    found = ours({"beam": 4, "match_source_len": True})
    assert [[len(h) for h in hypotheses] for hypotheses in found] == [[n] * 4 for n in sizes]


def test_a_search_leaves_the_model_as_it_was(both):
    theirs, _, ours = both
    # A beam of four stays behind in the attention: other features, or an error.
    assert theirs["after_a_search"] in ({"same": False}, {"error": "RuntimeError"})
    options = {"beam": 2}
    before = ours(options)
    ours({"beam": 4})
    assert ours(options) == before


def test_a_hypothesis_ends_at_its_end(both):
    """With as many candidates as beams, fairseq goes on with beams that have chosen `</s>`."""
    theirs, sources, ours = both

    def goes_on(found):
        return any(EOS in h[:-1] for hypotheses in found for h in hypotheses)

    allowed = [hypotheses for (hypotheses,) in theirs["allowed"]]
    assert goes_on(theirs["groups"][0]["found"]) and goes_on(allowed)
    assert not goes_on(ours(GROUPS))
    everything = list(range(48))
    found = ours({"beam": 4}, prefix_allowed_tokens_fn=lambda row, ids: everything)
    assert not goes_on(found) and all(len(hypotheses) == 4 for hypotheses in found)


def test_one_beam_finds_a_phrase(both):
    """fairseq gives the only place to a candidate of probability zero, then fails."""
    theirs, sources, ours = both
    assert theirs["beam_1_phrase"] == [{"error": "AssertionError"}] * 4
    options = {"beam": 1, "max_len_b": 30, "constraints": "ordered"}
    for (tokens,) in ours(options, sources[:4], constraints=[[[20, 31]]] * 4):
        assert (20, 31) in zip(tokens, tokens[1:], strict=False)
