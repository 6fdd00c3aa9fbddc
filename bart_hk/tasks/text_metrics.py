"""BLEU and ROUGE of generated texts, accumulated row by row."""

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

NAMES = ("bleu", "rouge")

_PACKAGES = {"bleu": "sacrebleu", "rouge": "rouge_score"}
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# Where a sentence ends: before a full stop's next word, tokenised (`a film . It`) or not.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_ORDER = 4  # n-grams of BLEU


class TextMetrics:
    """Sums from which BLEU and ROUGE of a corpus follow; no text is kept.

    * bleu: sacrebleu's corpus BLEU, 13a tokenisation, mixed case, exponential smoothing.
    * rouge: the mean F1 of ROUGE-1, -2 and -L of rouge-score with stemming, times 100. "rougeL"
      takes a text as one sentence. "rougeLsum" is the ROUGE-L of the BART papers, which used
      files2rouge (ROUGE-1.5.5), of sentences, which end at . ! or ? and a space.

    Attributes:
        state: the sums, as JSON can hold them exactly.
    """

    def __init__(self, names: Sequence[str] = NAMES, state: Mapping[str, Any] | None = None):
        """From no rows, or going on from another's `state`.

        Raises:
            ValueError: there is no such metric, or the state is of a version with other sums.
            ImportError: its package is not installed; the message is one line with the remedy.
        """
        for name in names:
            if name not in NAMES:
                raise ValueError(f"there is no metric {name!r}; choose from {', '.join(NAMES)}")
        self.names = tuple(name for name in NAMES if name in names)
        packages = {name: _package(name) for name in self.names}
        self._bleu = packages.get("bleu")
        self._rouge = None
        if "rouge" in packages:
            scorer = importlib.import_module("rouge_score.rouge_scorer")
            self._rouge = scorer.RougeScorer(list(ROUGE), use_stemmer=True)
        self.state: dict[str, Any] = {
            "rows": 0,
            "correct": [0] * _ORDER,
            "total": [0] * _ORDER,
            "lengths": [0, 0],
            **dict.fromkeys(ROUGE, 0.0),
        }
        if missing := self.state.keys() - (state or self.state).keys():
            raise ValueError(
                f"the sums of another version lack {', '.join(sorted(missing))}; begin again"
            )
        self.state |= state or {}

    def add(self, hypothesis: str, *references: str) -> None:
        """Counts one row. Of several references BLEU takes the n-grams of all of them, and each
        ROUGE the one that it is best with."""
        state = self.state
        state["rows"] += 1
        if self._bleu is not None:
            found = self._bleu.corpus_bleu([hypothesis], [[text] for text in references])
            state["correct"] = [a + b for a, b in zip(state["correct"], found.counts, strict=True)]
            state["total"] = [a + b for a, b in zip(state["total"], found.totals, strict=True)]
            state["lengths"] = [
                state["lengths"][0] + int(found.sys_len),
                state["lengths"][1] + int(found.ref_len),
            ]
        if self._rouge is not None:
            lines = [_SENTENCE_END.sub("\n", text.strip()) for text in (hypothesis, *references)]
            for name, score in self._rouge.score_multi(lines[1:], lines[0]).items():
                state[name] += score.fmeasure

    def results(self) -> dict[str, float]:
        """The metrics by name, from 0 to 100: those of `ROUGE` and "bleu"."""
        results = {}
        if self._bleu is not None:
            results["bleu"] = float(self._corpus_bleu().score)
        if self._rouge is not None:
            rows = max(self.state["rows"], 1)
            results |= {name: 100 * self.state[name] / rows for name in ROUGE}
        return results

    def lines(self) -> list[str]:
        """The results for people: BLEU as sacrebleu and fairseq write it, then ROUGE."""
        lines = []
        results = self.results()
        if self._bleu is not None:
            lines.append(self._corpus_bleu().format())
        if self._rouge is not None:
            scores = [f"{n.replace('rouge', 'ROUGE-')} = {results[n]:.2f}" for n in ROUGE]
            lines.append(", ".join(scores))
        return lines

    def _corpus_bleu(self) -> Any:
        assert self._bleu is not None
        state = self.state
        compute = importlib.import_module("sacrebleu.metrics").BLEU.compute_bleu
        return compute(state["correct"], state["total"], *state["lengths"], smooth_method="exp")


def _package(metric: str) -> Any:
    package = _PACKAGES[metric]
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ImportError(
            f"{metric.upper()} needs the package {package.replace('_', '-')}, which is not "
            "installed: pip install 'bart_hk[metrics]'"
        ) from None
