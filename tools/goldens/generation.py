"""What the real fairseq generates with two small trained BARTs (`_search_models.py`).

`cases.json` holds the sources, the option sets and the targets that are scored.
`MODEL.safetensors` holds for each option set, flat over its sentences and hypotheses: `SET/counts`
(hypotheses of each sentence), `SET/lengths`, `SET/tokens`, `SET/scores`, `SET/positional_scores`,
and `SET/margins`: how far the closest decision of a sentence's search was from falling otherwise.
`plain/attention` is flat over the plain hypotheses, [source, target] each. `score/...` is the
SequenceScorer's.

fairseq searches each sentence on its own, and three of its defects are repaired first: the beam
size that a search leaves behind in the model, n-gram blocking that blocks nothing on a CPU, and
`match_source_len` that is one token too long.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _oracles import fairseq_bart, fairseq_dictionary
from _recording import input_hash, write_arrays, write_json
from _search_models import BOS, EOS, MODELS, Language
from fairseq.ngram_repeat_block import NGramRepeatBlock
from fairseq.search import BeamSearch, LengthConstrainedBeamSearch
from fairseq.sequence_generator import EnsembleModel, SequenceGenerator
from fairseq.sequence_scorer import SequenceScorer
from safetensors.torch import load_file

INPUTS = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "inputs"
SENTENCES = 20
PLAIN = {"beam": 4}
# What is not given is PLAIN's, or fairseq's default.
OPTIONS: dict[str, dict[str, Any]] = {
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
LONGER = {"beyond_32": {"min_len": 33}, "whole_length": {"min_len": 39, "unkpen": 1.0}}


def ban_repeated_ngrams(
    block: NGramRepeatBlock,
    tokens: torch.Tensor,
    lprobs: torch.Tensor,
    bsz: int,
    beam_size: int,
    step: int,
) -> torch.Tensor:
    """What fairseq's CUDA extension does: its Python twin looks at the padding behind `step`."""
    n = block.no_repeat_ngram_size
    for row, lprob in zip(tokens[:, : step + 1].tolist(), lprobs, strict=True):
        tail = row[step + 2 - n :]
        for i in range(step + 2 - n):
            if row[i : i + n - 1] == tail:
                lprob[row[i + n - 1]] = -torch.inf
    return lprobs


class Margins(BeamSearch):
    """fairseq's plain search step, noting how close each decision was."""

    def __init__(self, dictionary: Any, beam: int) -> None:
        super().__init__(dictionary)
        self.beam, self.smallest = beam, float("inf")

    def step(self, step: int, lprobs: torch.Tensor, scores: Any, *rest: Any, **kwargs: Any) -> Any:
        self.note(lprobs[0, :1] if step == 0 else lprobs[0] + scores[0, :, step - 1, None])
        return super().step(step, lprobs, scores, *rest, **kwargs)

    def note(self, totals: torch.Tensor) -> None:
        values, index = totals.flatten().topk(min(2 * self.beam + 1, totals.numel()))
        ends = (index % totals.shape[1] == EOS).tolist()
        values = values[values > -torch.inf].tolist()
        # Which candidates go on: the last that does against the first that does not.
        going_on = [v for v, end in zip(values, ends, strict=False) if not end]
        pairs = [going_on[self.beam - 1 : self.beam + 1]]
        # Which hypotheses end, and in which order: </s> against every neighbour among the first.
        for i in range(min(self.beam, len(values) - 1)):
            if ends[i] or (i == self.beam - 1 and ends[i + 1]):
                pairs.append(values[i : i + 2])
        gaps = [pair[0] - pair[1] for pair in pairs if len(pair) == 2]
        self.smallest = min([self.smallest, *gaps])


def search(
    model: Any, dictionary: Any, source: list[int], options: dict[str, Any]
) -> tuple[list[dict[str, torch.Tensor]], float]:
    """fairseq's hypotheses for one source, and their margin."""
    options = {**PLAIN, **options}
    lenpen = options.pop("lenpen", 1.0)
    beam, match = options.pop("beam"), options.get("match_source_len", False)
    margins = Margins(dictionary, beam)
    strategy = margins
    net_input = {"src_tokens": torch.tensor([source])}
    if match:
        # As FairseqTask.build_generator has it; `</s>` is not counted.
        strategy = LengthConstrainedBeamSearch(
            dictionary, min_len_a=1, min_len_b=0, max_len_a=1, max_len_b=0
        )
        strategy.beam = margins
        net_input["src_lengths"] = torch.tensor([len(source) - 1])
    generator = SequenceGenerator(
        [model],
        dictionary,
        beam_size=beam,
        normalize_scores=not options.pop("unnormalized", False),
        len_penalty=lenpen,
        unk_penalty=options.pop("unkpen", 0.0),
        search_strategy=strategy,
        **options,
    )
    sample = {"net_input": net_input}
    (found,) = generator.generate([model], sample, prefix_tokens=torch.tensor([[BOS]]))
    scores = [h["score"].item() for h in found]
    gaps = [a - b for a, b in zip(scores, scores[1:], strict=False)]
    return found, min([margins.smallest, *gaps])


def flat(rows: list[torch.Tensor], dtype: Any) -> np.ndarray:
    return np.concatenate([row.numpy().ravel() for row in rows]).astype(dtype)


def record_searches(model: Any, dictionary: Any, sources: list, sets: dict) -> dict:
    arrays = {}
    for name, options in sets.items():
        found, margins = zip(*(search(model, dictionary, s, options) for s in sources), strict=True)
        every = [h for hypotheses in found for h in hypotheses]
        arrays[f"{name}/counts"] = np.array([len(h) for h in found], np.int16)
        arrays[f"{name}/lengths"] = np.array([len(h["tokens"]) for h in every], np.int16)
        arrays[f"{name}/tokens"] = flat([h["tokens"] for h in every], np.int16)
        arrays[f"{name}/scores"] = flat([h["score"] for h in every], np.float32)
        arrays[f"{name}/positional_scores"] = flat(
            [h["positional_scores"] for h in every], np.float32
        )
        arrays[f"{name}/margins"] = np.array(margins, np.float32)
        if name == "plain":
            arrays["plain/attention"] = flat([h["attention"] for h in every], np.float32)
    return arrays


def record_scores(model: Any, dictionary: Any, sources: list, targets: list) -> dict:
    scorer, found = SequenceScorer(dictionary), []
    for source, target in zip(sources, targets, strict=True):
        net_input = {
            "src_tokens": torch.tensor([source]),
            "src_lengths": torch.tensor([len(source)]),
            "prev_output_tokens": torch.tensor([[EOS, *target[:-1]]]),
        }
        sample = {"net_input": net_input, "target": torch.tensor([target])}
        found.append(scorer.generate([model], sample)[0][0])
    return {
        "score/scores": flat([h["score"] for h in found], np.float32),
        "score/positional_scores": flat([h["positional_scores"] for h in found], np.float32),
    }


def main(out: Path) -> None:
    EnsembleModel.set_decoder_beam_size = lambda self, beam_size: None
    NGramRepeatBlock._no_repeat_ngram = ban_repeated_ngrams
    torch.set_num_threads(1)  # products this small only wait for each other
    cases: dict[str, Any] = {"plain": PLAIN, "models": {}}
    hashes = []
    for name, fields in MODELS.items():
        weights = INPUTS / f"search_{name}.safetensors"
        dictionary, model = fairseq_dictionary(fields["vocab_size"]), fairseq_bart(fields)
        missing = model.load_state_dict(load_file(weights), strict=False).missing_keys
        assert all("output_projection" in key or "embed_tokens" in key for key in missing), missing
        language, rng = Language(fields["vocab_size"]), np.random.default_rng(99)
        pairs = [language.pair(rng) for _ in range(SENTENCES)]
        sources, targets = ([pair[i] for pair in pairs] for i in (0, 1))
        sets = OPTIONS | (LONGER if fields["max_target_positions"] > 32 else {})
        hashes.append(input_hash(weights, sources, targets, sets))
        arrays = record_searches(model, dictionary, sources, sets)
        arrays |= record_scores(model, dictionary, sources, targets)
        write_arrays(out / f"{name}.safetensors", arrays, hashes[-1])
        cases["models"][name] = {
            "weights": weights.name,
            "config": fields,
            "sources": sources,
            "targets": targets,
            "options": sets,
        }
    write_json(out / "cases.json", cases, input_hash(hashes))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(Path(sys.argv[1]))
