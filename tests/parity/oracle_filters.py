"""Run by the oracle's interpreter: what transformers' filters leave of distributions.

The folder's `cases.json` has the "logits" of some distributions, how many tokens stay at least
("fewest"), and sets of filters by our names. `found.json` tells of each which tokens are left.
"""

import json
import sys
from pathlib import Path

import torch
import transformers

FILTERS = {  # in the order in which `generate` applies them
    "topp": transformers.TopPLogitsWarper,
    "min_p": transformers.MinPLogitsWarper,
    "typical_p": transformers.TypicalLogitsWarper,
    "epsilon_cutoff": transformers.EpsilonLogitsWarper,
    "eta_cutoff": transformers.EtaLogitsWarper,
}


def main(folder: Path) -> None:
    cases, found = json.loads((folder / "cases.json").read_text()), {}
    for name, values in cases["sets"].items():
        scores = torch.tensor(cases["logits"])
        for key, kind in FILTERS.items():
            if key in values:
                scores = kind(values[key], min_tokens_to_keep=cases["fewest"])(None, scores)
        found[name] = scores.isfinite().tolist()
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
