"""What the real fairseq generates with two small trained BARTs (`_search_models.py`).

`cases.json` holds the sources, the option sets (`_search_sets.py`), what some of them are given for
each sentence ("inputs"), and the targets that are scored.
`MODEL.safetensors` holds for each option set, flat over its sentences and hypotheses: `SET/counts`
(hypotheses of each sentence), `SET/lengths`, `SET/tokens`, `SET/scores`, `SET/positional_scores`,
and `SET/margins`: how far the closest decision of a sentence's search was from falling otherwise.
`SET/alignment` is flat over the hypotheses: soft ones [target, source] each, hard ones pairs, of
which each has `SET/alignment_counts`. `plain/attention` is flat over the plain hypotheses, [source,
target] each. `score/...` is the SequenceScorer's. `lm` [V, V] are the logits of a language model
of bigrams; the second model of an ensemble is `perturbed`.

fairseq searches each sentence on its own, and its defects are repaired first: those that
`_search_strategies.py` names, and `match_source_len` that is one token too long.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _oracles import fairseq_bart, fairseq_dictionary
from _recording import input_hash, write_arrays, write_json
from _search_models import BOS, EOS, MODELS, PAD, Language
from _search_sets import (
    INPUTS_OF,
    LONGER,
    PLAIN,
    PLAIN_SETS,
    allowed_tokens,
    option_sets,
    row_inputs,
)
from _search_strategies import (
    Allowed,
    Bigrams,
    Groups,
    Lexical,
    Margin,
    Plain,
    Siblings,
    length_constrained,
    repair,
)
from fairseq.sequence_generator import SequenceGenerator
from fairseq.sequence_scorer import SequenceScorer
from fairseq.token_generation_constraints import pack_constraints
from fairseq.utils import extract_hard_alignment, extract_soft_alignment
from safetensors.torch import load_file

INPUTS = Path(__file__).resolve().parents[2] / "tests" / "goldens" / "inputs"
SENTENCES = 20
FEWER = 10  # for the sets that are not PLAIN_SETS


def perturbed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of another model that knows the same language, but not quite as well."""
    rng = np.random.default_rng(12)
    other = {}
    for name in sorted(state):
        noise = rng.standard_normal(state[name].shape).astype(np.float32)
        other[name] = state[name] * torch.from_numpy(1 + np.float32(0.25) * noise)
    return other


def language_model(vocab_size: int) -> np.ndarray:
    """Logits of the token after each, float32 [V, V]."""
    rng = np.random.default_rng(5)
    return (1.5 * rng.standard_normal((vocab_size, vocab_size))).astype(np.float32)


class Searcher:
    """fairseq's searches of single sentences with a model, its ensemble and a language model."""

    def __init__(self, fields: dict[str, Any], weights: Path) -> None:
        state = load_file(weights)
        self.dictionary = fairseq_dictionary(fields["vocab_size"])
        self.models = [fairseq_bart(fields) for _ in range(2)]
        for model, values in zip(self.models, (state, perturbed(state)), strict=True):
            missing = model.load_state_dict(values, strict=False).missing_keys
            assert all("output_projection" in k or "embed_tokens" in k for k in missing), missing
        self.lm = torch.from_numpy(language_model(fields["vocab_size"]))

    def search(
        self, source: list[int], options: dict[str, Any], row: int, inputs: dict[str, Any]
    ) -> tuple[list[dict[str, Any]], float]:
        """The hypotheses for one source, and their margin."""
        options = {**PLAIN, **options}
        beam, nbest = options.pop("beam"), options.pop("nbest", None)
        alignment = options.pop("print_alignment", None)
        margin, models = Margin(), self.models[: 1 + inputs.get("ensemble", False)]
        sample = {"net_input": {"src_tokens": torch.tensor([source])}}
        arguments = {"prefix_tokens": torch.tensor([inputs["prefix_tokens"][row]]).long()}
        if options.get("match_source_len"):
            sample["net_input"]["src_lengths"] = torch.tensor([len(source) - 1])  # without `</s>`
        if "constraints" in inputs:
            phrases = [torch.tensor(phrase) for phrase in inputs["constraints"][row]]
            arguments["constraints"] = pack_constraints([phrases])
        if "lm" in inputs:
            options["lm_model"] = Bigrams(self.dictionary, self.lm)
        suppressed = options.pop("suppress_tokens", ())
        generator = SequenceGenerator(
            models,
            self.dictionary,
            beam_size=beam,
            search_strategy=self.strategy(options, row, inputs, beam, margin),
            normalize_scores=not options.pop("unnormalized", False),
            len_penalty=options.pop("lenpen", 1.0),
            unk_penalty=options.pop("unkpen", 0.0),
            tokens_to_suppress=[self.dictionary[i] for i in suppressed],
            **options,
        )
        (found,) = generator.generate(models, sample, **arguments)
        margin.note([h["score"].item() for h in found])
        if alignment:
            extract = {"hard": extract_hard_alignment, "soft": extract_soft_alignment}[alignment]
            for hypothesis in found:
                attention, ids = hypothesis["attention"].T, hypothesis["tokens"]
                pairs = extract(attention, torch.tensor(source), ids, PAD, EOS)
                hypothesis["alignment"] = np.array(pairs, np.float32)
        return found[:nbest], margin.smallest

    def strategy(
        self, options: dict[str, Any], row: int, inputs: dict[str, Any], beam: int, margin: Margin
    ) -> Any:
        """The strategy that the options ask for, which are taken out of them."""
        groups = options.pop("diverse_beam_groups", 0)
        diversity = {
            name: options.pop(name, default)
            for name, default in (
                ("diverse_beam_strength", 0.5),
                ("diversity_discount", 1.0),
                ("diversity_candidate_multiple", 1),
            )
        }
        rate, representation = options.pop("diversity_rate", -1), options.pop("constraints", None)
        if groups:
            return Groups(self.dictionary, margin, groups, *diversity.values())
        if options.get("match_source_len"):
            return length_constrained(self.dictionary, beam, margin)
        if rate > -1:
            return Siblings(self.dictionary, beam, margin, rate)
        if representation:
            return Lexical(self.dictionary, margin, representation)
        if "allowed" in inputs:
            allowed = allowed_tokens(inputs["allowed"])
            return Allowed(self.dictionary, margin, lambda _, ids: allowed(row, ids.tolist()))
        return Plain(self.dictionary, beam, margin)


def flat(rows: list[Any], dtype: Any) -> np.ndarray:
    return np.concatenate([np.ravel(row) for row in rows]).astype(dtype)


def record_searches(searcher: Searcher, sources: list, sets: dict, inputs: dict) -> dict:
    arrays = {}
    for name, options in sets.items():
        some = sources if name in PLAIN_SETS | LONGER else sources[:FEWER]
        given = {"prefix_tokens": [[BOS]] * len(some), **inputs.get(name, {})}
        results = [searcher.search(s, options, i, given) for i, s in enumerate(some)]
        found, margins = zip(*results, strict=True)
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
        if "print_alignment" in options:
            dtype = np.int16 if options["print_alignment"] == "hard" else np.float32
            arrays[f"{name}/alignment"] = flat([h["alignment"] for h in every], dtype)
            counts = [len(h["alignment"]) for h in every]
            arrays[f"{name}/alignment_counts"] = np.array(counts, np.int16)
    return arrays


def record_scores(searcher: Searcher, sources: list, targets: list) -> dict:
    scorer, found = SequenceScorer(searcher.dictionary), []
    for source, target in zip(sources, targets, strict=True):
        net_input = {
            "src_tokens": torch.tensor([source]),
            "src_lengths": torch.tensor([len(source)]),
            "prev_output_tokens": torch.tensor([[EOS, *target[:-1]]]),
        }
        sample = {"net_input": net_input, "target": torch.tensor([target])}
        found.append(scorer.generate(searcher.models[:1], sample)[0][0])
    return {
        "score/scores": flat([h["score"] for h in found], np.float32),
        "score/positional_scores": flat([h["positional_scores"] for h in found], np.float32),
    }


def main(out: Path) -> None:
    repair()
    torch.set_num_threads(1)  # products this small only wait for each other
    cases: dict[str, Any] = {"plain": PLAIN, "models": {}}
    hashes = []
    for name, fields in MODELS.items():
        weights, vocab_size = INPUTS / f"search_{name}.safetensors", fields["vocab_size"]
        language, rng = Language(vocab_size), np.random.default_rng(99)
        pairs = [language.pair(rng) for _ in range(SENTENCES)]
        sources, targets = ([pair[i] for pair in pairs] for i in (0, 1))
        sets = option_sets(vocab_size, longer=fields["max_target_positions"] > 32)
        inputs = {k: row_inputs(v, targets[:FEWER], vocab_size) for k, v in INPUTS_OF.items()}
        hashes.append(input_hash(weights, sources, targets, sets, inputs))
        searcher = Searcher(fields, weights)
        arrays = record_searches(searcher, sources, sets, inputs)
        arrays |= record_scores(searcher, sources, targets)
        arrays["lm"] = language_model(vocab_size)
        write_arrays(out / f"{name}.safetensors", arrays, hashes[-1])
        cases["models"][name] = {
            "weights": weights.name,
            "config": fields,
            "sources": sources,
            "targets": targets,
            "options": sets,
            "inputs": inputs,
        }
    write_json(out / "cases.json", cases, input_hash(hashes))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(Path(sys.argv[1]))
