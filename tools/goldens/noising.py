"""fairseq's noise (`DenoisingDataset`), with every random draw that led to it: `noising.json`.

Run by `make_goldens.py`. Given the same draws, ours must be the same, token for token. The span
lengths' probabilities are recorded too.
"""

import math
import sys
from pathlib import Path

import torch
from _noise_cases import cases
from _noise_oracle import dataset, dictionary, noised
from _recording import input_hash, write_json


def main(out: Path) -> None:
    torch.manual_seed(1)
    made = cases(seed=1, count=9, longest=32)
    for case in made:
        vocabulary = dictionary(case["vocab_size"])
        found = noised(case["rows"], case["options"], vocabulary, case["word_starts"])
        case["answers"] = found
    spans = {}
    for rate in (0.5, 3.0, 3.5):
        options = {"mask": 0.3, "mask_length": "span-poisson", "poisson_lambda": rate}
        found = dataset([[0, 2]], options, dictionary(60), None).mask_span_distribution
        spans[str(rate)] = found.probs.tolist()
    # How many of n words are hidden, where that is not what n * p is rounded up to.
    budgets = {}
    for share in (0.15, 0.3, 0.35, 0.7):
        torchs = [math.ceil(torch.tensor(float(n)) * share) for n in range(1023)]
        odd = [[n, found] for n, found in enumerate(torchs) if found != math.ceil(n * share)]
        budgets[str(share)] = odd
    inputs = [[case["rows"], case["options"], case["word_starts"]] for case in made]
    write_json(
        out / "noising.json",
        {"cases": made, "spans": spans, "budgets": budgets},
        input_hash(inputs),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
