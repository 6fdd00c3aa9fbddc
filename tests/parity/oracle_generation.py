"""Run by the oracle's interpreter: transformers' `generate` over the folder's `cases.json`.

The model is the directory `model`. A case has `generate`'s own arguments, and more:
* "keep_chances": tokens are forced with the probability that the model gives them, as in fairseq.
  transformers' own forcing takes it for certain, which changes what lengths are worth;
* "prefixes": of each source its `decoder_input_ids` behind the start token;
* "stops": what tokens spell ("letters"), and the "strings" that end a text;
* "trie": sequences that `prefix_allowed_tokens_fn` allows;
* "penalty_alpha": contrastive search, which transformers 4.57.6 no longer has (`contrastive`).
The ids and scores of all hypotheses go into `found.json`.

transformers 4.57.6 applies the encoder repetition penalty to the first beam alone, as it does not
repeat the source for the others; here it is repeated.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional as F
from transformers.generation import logits_process
from transformers.generation import utils as generation_utils


class Forcing(transformers.LogitsProcessor):
    """Leaves one token at the first and at the last position, with the score that it has."""

    def __init__(self, first: int, last: int, max_length: int) -> None:
        self.tokens = {1: first, max_length - 1: last}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        token = self.tokens.get(input_ids.shape[1])
        if token is None:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = scores[:, token]
        return forced


class Stopping(transformers.StoppingCriteria):
    """Is the last token of a row a part of one of the strings? transformers' `StopStringCriteria`
    asks this of a tokenizer's vocabulary."""

    def __init__(self, letters: list[str], strings: list[str]) -> None:
        self.letters, self.strings = letters, strings

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.tensor([self._stops(row) for row in input_ids.tolist()])

    def _stops(self, ids: list[int]) -> bool:
        text = "".join(self.letters[i] for i in ids)
        before = len(text) - len(self.letters[ids[-1]])
        return any(text.find(s, max(before - len(s) + 1, 0)) >= 0 for s in self.strings)


class EncoderPenalty(logits_process.EncoderRepetitionPenaltyLogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        own = self.encoder_input_ids
        self.encoder_input_ids = own.repeat_interleave(len(scores) // len(own), 0)
        found = super().__call__(input_ids, scores)
        self.encoder_input_ids = own
        return found


def contrastive(
    model: Any, source: list[int], alpha: float, top_k: int, max_length: int
) -> list[int]:
    """Su et al. 2022, equation 5, the plainest way: every prefix is decoded anew."""
    config, ids = model.config, [model.config.decoder_start_token_id]
    inputs = torch.tensor([source])

    def decode(ids: list[int]) -> Any:
        found = model(inputs, decoder_input_ids=torch.tensor([ids]), output_hidden_states=True)
        return found.logits[0, -1], F.normalize(found.decoder_hidden_states[-1][0], dim=-1)

    while len(ids) < max_length and (len(ids) == 1 or ids[-1] != config.eos_token_id):
        logits, features = decode(ids)
        logits[config.pad_token_id] = -torch.inf  # bart_hk never chooses <pad>
        if len(ids) == 1:
            best = [config.bos_token_id]
        else:
            best = logits.topk(top_k)[1].tolist()
        values = []
        for token in best:
            feature = decode([*ids, token])[1][-1]
            chance = logits.softmax(-1)[token]
            values.append((1 - alpha) * chance - alpha * (features @ feature).max())
        ids.append(best[int(torch.stack(values).argmax())])
    return ids


def in_trie(sequences: list[list[int]]) -> Any:
    def allowed(row: int, ids: torch.Tensor) -> list[int]:
        so_far = ids.tolist()[1:]
        return [s[len(so_far)] for s in sequences if s[: len(so_far)] == so_far and s != so_far]

    return allowed


def generate(model: Any, sources: list[list[int]], case: dict[str, Any]) -> list[dict[str, Any]]:
    case = dict(case)
    keep_chances, prefixes = case.pop("keep_chances", False), case.pop("prefixes", None)
    stops, trie, found = case.pop("stops", None), case.pop("trie", None), []
    config = model.config
    settings = transformers.GenerationConfig(**model.generation_config.to_diff_dict() | case)
    if keep_chances:
        forcing = Forcing(config.bos_token_id, config.eos_token_id, case["max_new_tokens"] + 1)
    for i, source in enumerate(sources):
        arguments: dict[str, Any] = {}
        if prefixes:
            start = [config.decoder_start_token_id, *prefixes[i]]
            arguments["decoder_input_ids"] = torch.tensor([start])
        if trie:
            arguments["prefix_allowed_tokens_fn"] = in_trie(trie)
        if stops:
            arguments["stopping_criteria"] = transformers.StoppingCriteriaList([Stopping(**stops)])
        if keep_chances:
            arguments["logits_processor"] = transformers.LogitsProcessorList([forcing])
        out = model.generate(
            torch.tensor([source]),
            generation_config=settings,
            return_dict_in_generate=True,
            output_scores=True,
            **arguments,
        )
        scores = out.sequences_scores.tolist() if "sequences_scores" in out else None
        found.append({"ids": out.sequences.tolist(), "scores": scores})
    return found


IDS = ("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id")


def main(folder: Path) -> None:
    generation_utils.EncoderRepetitionPenaltyLogitsProcessor = EncoderPenalty
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder / "model").eval()
    # What the model's directory says about forced tokens would come in between.
    config = model.config
    model.generation_config = transformers.GenerationConfig(
        **{name: getattr(config, name) for name in IDS}
    )
    cases, found = json.loads((folder / "cases.json").read_text()), {}
    for name, case in cases["sets"].items():
        if "penalty_alpha" in case:
            alpha, k, longest = (case[n] for n in ("penalty_alpha", "top_k", "max_length"))
            ids = [contrastive(model, source, alpha, k, longest) for source in cases["sources"]]
            found[name] = [{"ids": [row], "scores": None} for row in ids]
        else:
            found[name] = generate(model, cases["sources"], case)
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)  # products this small only wait for each other
    main(Path(sys.argv[1]))
