"""What `bart-hk-generate` writes for an input: fairseq's lines, JSON, or the text alone.

Source of the lines: `fairseq_cli/generate.py` and `interactive.py` (the C-lines).
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bart_hk.cli.inputs import Item

# Of each hypothesis, beside its dictionary: "text", and "symbols", the dictionary's, with spaces.
Hypotheses = Sequence[Mapping[str, Any]]


def _fairseq(item: Item, hypotheses: Hypotheses) -> str:
    """S- source, T- reference, C- constraints; of each hypothesis H- and D- (score in base 2 and
    symbols or text), P- scores of the tokens in base 2, and A- alignment if there is one."""
    n = item.number
    lines = [f"S-{n}\t{item.source}"]
    if item.target is not None:
        lines.append(f"T-{n}\t{item.target}")
    lines += [f"C-{n}\t{phrase}" for phrase in item.constraints or ()]
    for hypothesis in hypotheses:
        score = _base_2(hypothesis["score"])
        lines.append(f"H-{n}\t{score}\t{hypothesis['symbols']}")
        lines.append(f"D-{n}\t{score}\t{hypothesis['text']}")
        scores = [f"{_base_2(value):.4f}" for value in hypothesis["positional_scores"]]
        lines.append(f"P-{n}\t{' '.join(scores)}")
        alignment = hypothesis["alignment"]
        if isinstance(alignment, list):
            lines.append(f"A-{n}\t{' '.join(f'{s}-{t}' for s, t in alignment)}")
        elif np.size(alignment):
            weights = [",".join(f"{weight:.6f}" for weight in row) for row in alignment]
            lines.append(f"A-{n}\t{' '.join(weights)}")
    return "".join(f"{_one_line(line)}\n" for line in lines)


def _jsonl(item: Item, hypotheses: Hypotheses) -> str:
    """One object on a line; scores are natural logarithms, as in Python."""
    record: dict[str, Any] = {"id": item.number, "source": item.source}
    if item.target is not None:
        record["target"] = item.target
    if item.constraints:
        record["constraints"] = list(item.constraints)
    record["hypotheses"] = [
        {
            "text": hypothesis["text"],
            "score": _rounded(hypothesis["score"]),
            "tokens": np.asarray(hypothesis["tokens"]).tolist(),
            "positional_scores": [_rounded(value) for value in hypothesis["positional_scores"]],
            **_json_alignment(hypothesis["alignment"]),
        }
        for hypothesis in hypotheses
    ]
    return json.dumps(record, ensure_ascii=False) + "\n"


def _text(item: Item, hypotheses: Hypotheses) -> str:
    """A line for each hypothesis; an empty one where there is none."""
    texts = [hypothesis["text"] for hypothesis in hypotheses] or [""]
    return "".join(f"{_one_line(text)}\n" for text in texts)


FORMATS: Mapping[str, Callable[[Item, Hypotheses], str]] = {
    "fairseq": _fairseq,
    "jsonl": _jsonl,
    "text": _text,
}


def _base_2(log_probability: Any) -> float:
    return float(np.float32(log_probability) / np.float32(math.log(2)))


def _rounded(value: Any) -> float:
    return float(f"{float(value):.7g}")  # what a float32 holds


def _json_alignment(alignment: Any) -> dict[str, Any]:
    if isinstance(alignment, list):
        return {"alignment": [list(pair) for pair in alignment]}
    if np.size(alignment):
        return {"alignment": [[_rounded(w) for w in row] for row in alignment]}
    return {}


def _one_line(text: str) -> str:
    """Line breaks within a text become spaces."""
    return re.sub(r"[\r\n]+", " ", text)
