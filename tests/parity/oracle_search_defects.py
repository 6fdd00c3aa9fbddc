"""Run by the oracle's interpreter: what the real fairseq, with nothing repaired, makes of searches.

`case.json` holds "config", "weights" (a file) and "sources"; the answers go into `found.json`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _oracles import fairseq_bart, fairseq_dictionary
from fairseq.search import (
    DiverseBeamSearch,
    LengthConstrainedBeamSearch,
    LexicallyConstrainedBeamSearch,
    PrefixConstrainedBeamSearch,
)
from fairseq.sequence_generator import SequenceGenerator
from fairseq.token_generation_constraints import pack_constraints
from safetensors.torch import load_file


def attempt(action: Callable[[], Any]) -> Any:
    """What it returns, or {"error": the exception's name}."""
    try:
        return action()
    except Exception as error:
        return {"error": type(error).__name__}


class Fairseq:
    def __init__(self, case: dict[str, Any]) -> None:
        self.case = case
        self.dictionary = fairseq_dictionary(case["config"]["vocab_size"])
        self.pad, self.bos = self.dictionary.pad(), self.dictionary.bos()

    def model(self) -> Any:
        model = fairseq_bart(dict(self.case["config"]))
        model.load_state_dict(load_file(self.case["weights"]), strict=False)
        return model

    def batch(self, sources: list[list[int]]) -> torch.Tensor:
        width = max(map(len, sources))
        return torch.tensor([row + [self.pad] * (width - len(row)) for row in sources])

    def search(
        self,
        sources: list[list[int]],
        strategy: Any = None,
        ids: list[int] | None = None,
        lengths: list[int] | None = None,
        phrases: list[list[int]] | None = None,
        model: Any = None,
        **options: Any,
    ) -> list[list[list[int]]]:
        """The hypotheses' tokens."""
        sample: dict[str, Any] = {"net_input": {"src_tokens": self.batch(sources)}}
        if ids is not None:
            sample["id"] = torch.tensor(ids)
        if lengths is not None:
            sample["net_input"]["src_lengths"] = torch.tensor(lengths)
        arguments = {}
        if phrases is not None:
            arguments["constraints"] = pack_constraints([[torch.tensor(p) for p in phrases]])
        generator = SequenceGenerator(
            [model or self.model()], self.dictionary, search_strategy=strategy, **options
        )
        prefix = torch.full((len(sources), 1), self.bos)
        found = generator.generate([], sample, prefix_tokens=prefix, **arguments)
        return [[h["tokens"].tolist() for h in hypotheses] for hypotheses in found]


def main(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text())
    sources, it = case["sources"], Fairseq(case)

    def groups() -> Any:
        return DiverseBeamSearch(it.dictionary, num_groups=2, diversity_strength=1.0)

    found: dict[str, Any] = {"groups": []}
    for ids in (None, [0, 1, 2, 3], [4, 5, 6, 7]):
        some = sources[: len(ids or sources)]
        answer = attempt(lambda s=some, i=ids: it.search(s, groups(), ids=i, beam_size=4))
        found["groups"].append({"ids": ids, "found": answer})

    found["no_repeat_ngram_size"] = {
        n: it.search(sources, beam_size=4, min_len=16, no_repeat_ngram_size=n) for n in (0, 2)
    }

    lengths = [len(source) for source in sources]
    found["match_source_len"] = []
    for source in sources:
        strategy = LengthConstrainedBeamSearch(
            it.dictionary, min_len_a=1, min_len_b=0, max_len_a=1, max_len_b=0
        )
        (hypotheses,) = it.search(
            [source], strategy, lengths=[len(source)], beam_size=4, match_source_len=True
        )
        found["match_source_len"].append(hypotheses)

    def features(model: Any) -> list:
        previous = torch.tensor([[2, *source[:-1]] for source in sources[:1]]).repeat(4, 1)
        batch = it.batch([s[: lengths[0]] for s in sources if len(s) >= lengths[0]][:4])
        found, _ = model(batch, None, previous[: len(batch)], features_only=True)
        return found.tolist()

    model = it.model()
    fresh = features(model)
    it.search(sources[:1], beam_size=4, model=model)
    after = attempt(lambda: features(model))
    found["after_a_search"] = after if isinstance(after, dict) else {"same": after == fresh}

    everything = list(range(it.bos, case["config"]["vocab_size"]))
    found["allowed"] = [
        it.search(
            [source], PrefixConstrainedBeamSearch(it.dictionary, lambda *_: everything), beam_size=4
        )
        for source in sources
    ]
    phrase = case["phrase"]
    found["beam_1_phrase"] = [
        attempt(
            lambda s=source: it.search(
                [s],
                LexicallyConstrainedBeamSearch(it.dictionary, "ordered"),
                phrases=[phrase],
                beam_size=1,
                max_len_b=30,
            )
        )
        for source in sources[:4]
    ]
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
