"""Greedy search beside transformers' on a model that fairseq trained, saved by us."""

import json

import numpy as np
from safetensors.numpy import load_file

from bart_hk.checkpoint.fairseq import from_fairseq
from bart_hk.checkpoint.huggingface import write_model
from bart_hk.config import BARTConfig
from bart_hk.generation.generator import Generator
from bart_hk.generation.options import GenerationOptions
from bart_hk.model import BART
from tests.generation.conftest import INPUTS


def test_greedy_tokens_equal_transformers(golden, oracle, tmp_path):
    case = golden("generation/cases.json")["models"]["post_norm"]
    config = BARTConfig(**case["config"])
    params, _ = from_fairseq(load_file(INPUTS / case["weights"]), config)
    # transformers has one length for source and target: rows that no source is long enough to use.
    room = config.max_target_positions - config.max_source_positions
    config = config.replace(max_source_positions=config.max_target_positions)
    positions = params["encoder/embed_positions"]
    positions["embeddings"] = np.pad(positions["embeddings"], ((0, room), (0, 0)))
    write_model(tmp_path / "model", config, params)
    (tmp_path / "sources.json").write_text(json.dumps(case["sources"]))
    oracle("oracle_generation.py", tmp_path)
    theirs = json.loads((tmp_path / "greedy.json").read_text())
    options = GenerationOptions(beam=1, max_len_b=29)  # and </s>, which transformers counts
    rows = [np.array(source) for source in case["sources"]]
    ours = Generator(BART(config)).generate(params, rows, options)
    assert len({tuple(ids) for ids in theirs}) > len(theirs) / 2  # they say different things
    for (hypothesis,), ids in zip(ours, theirs, strict=True):
        assert [config.decoder_start_token_id, *hypothesis["tokens"]] == ids
