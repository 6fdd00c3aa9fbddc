"""BLEU and ROUGE of generated texts, accumulated row by row."""

import importlib
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

NAMES = ("bleu", "rouge")

_PACKAGES = {"bleu": "sacrebleu", "rouge": "rouge_score"}
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# Where a sentence ends: before a full stop's next word, tokenised (`a film . It`) or not.
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_ORDER = 4  # n-grams of BLEU
# Thai, Lao, Burmese, Khmer; kana and Chinese characters.
_WITHOUT_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


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


def settings(names: Sequence[str], references: Sequence[int]) -> list[str]:
    """sacrebleu's signature, of rows of so many references, and what was done for ROUGE."""
    lines = []
    if "bleu" in names:
        count = references[0] if len(set(references)) == 1 else "var"
        signature = f"nrefs:{count}|case:mixed|eff:no|tok:13a|smooth:exp"
        lines.append(f"BLEU: {signature}|version:{version('sacrebleu')}")
    if "rouge" in names:
        lines.append(
            "ROUGE: rouge-score, F1, stemmed; the BART papers' ROUGE-L (files2rouge, on tokenised "
            "text) is rougeLsum, of sentences; rougeL takes a text as one"
        )
    return lines


def caveats(
    hypotheses: Sequence[str], references: Sequence[str], names: Sequence[str]
) -> list[str]:
    """Why these texts' metrics cannot be compared with published ones: a line for each reason."""
    lines: list[str] = []
    if not names:
        return lines
    # French has a space before ! and ? in any text.
    shares = [
        sum(any(f" {mark}" in text for mark in ".,") for text in texts) / max(len(texts), 1)
        for texts in (hypotheses, references)
    ]
    look = "look tokenised (a space before a full stop or comma)"
    if abs(shares[0] - shares[1]) > 0.5:
        which = "predictions" if shares[0] > shares[1] else "references"
        lines.append(
            f"the {which} {look} and the others do not: {' and '.join(map(str.upper, names))} "
            "cannot be compared with published numbers"
        )
    elif "bleu" in names and min(shares) > 0.5:
        lines.append(
            f"predictions and references {look}: BLEU, which tokenises them again, can be compared "
            "with that of such texts alone"
        )
    letters = [c for text in references for c in text if c.isalpha()]
    foreign = sum(not c.isascii() for c in letters) / max(len(letters), 1)
    if "rouge" in names and foreign > 0.02:
        lines.append(
            f"ROUGE is for English: rouge-score knows a to z and digits alone, and leaves out "
            f"{100 * foreign:.0f} % of the references' letters"
        )
    joined = sum(bool(_WITHOUT_SPACES.match(c)) for c in letters) / max(len(letters), 1)
    if "bleu" in names and joined > 0.1:
        lines.append(
            "BLEU's tokenisation, 13a, cuts at spaces, and the references are in a script without "
            "them: take sacrebleu's own for the language (--tokenize zh, ja-mecab, char)"
        )
    return lines


def _package(metric: str) -> Any:
    package = _PACKAGES[metric]
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ImportError(
            f"{metric.upper()} needs the package {package.replace('_', '-')}, which is not "
            "installed: pip install 'bart_hk[metrics]'"
        ) from None
