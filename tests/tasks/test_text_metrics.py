"""BLEU and ROUGE, against the packages that define them."""

import json
import sys

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from bart_hk.tasks.text_metrics import TextMetrics, caveats

PAIRS = [
    ("The cat sat on the mat.", "The cat sat on a mat."),
    ("", "Nothing was generated here."),
    ("Dogs were running in the parks, all day long", "A dog ran in the park all day long"),
    ("Exactly the same sentence, word for word.", "Exactly the same sentence, word for word."),
]


def test_bleu_of_rows_is_the_corpus_bleu():
    metrics = TextMetrics(["bleu"])
    for pair in PAIRS:
        metrics.add(*pair)
    expected = sacrebleu.corpus_bleu([h for h, _ in PAIRS], [[r for _, r in PAIRS]])
    assert metrics.results() == {"bleu": pytest.approx(expected.score, abs=1e-9)}
    assert metrics.lines() == [expected.format()]
    assert 20 < expected.score < 90


def test_rouge_is_the_mean_f1():
    metrics = TextMetrics(["rouge"])
    for pair in PAIRS:
        metrics.add(*pair)
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    scorer = rouge_scorer.RougeScorer(names, use_stemmer=True)
    scores = [scorer.score(reference, hypothesis) for hypothesis, reference in PAIRS]
    expected = {n: 100 * sum(s[n].fmeasure for s in scores) / len(PAIRS) for n in names}
    assert metrics.results() == pytest.approx(expected)
    one, two, longest, of_sentences = (f"{expected[name]:.2f}" for name in names)
    line = f"ROUGE-1 = {one}, ROUGE-2 = {two}, ROUGE-L = {longest}, ROUGE-Lsum = {of_sentences}"
    assert metrics.lines() == [line]


def test_rouge_of_sentences_finds_each_wherever_it_stands():
    """The same two sentences the other way round: half as one sequence, all as sentences (Lin 2004,
    section 3.2)."""
    metrics = TextMetrics(["rouge"])
    metrics.add("A dog ran home! The cat slept here.", "The cat slept here. A dog ran home!")
    found = metrics.results()
    assert found["rougeL"] == pytest.approx(50) and found["rougeLsum"] == pytest.approx(100)


def test_a_state_goes_on_exactly():
    whole = TextMetrics()
    for pair in PAIRS:
        whole.add(*pair)
    part = TextMetrics()
    for pair in PAIRS[:2]:
        part.add(*pair)
    part = TextMetrics(state=json.loads(json.dumps(part.state)))
    for pair in PAIRS[2:]:
        part.add(*pair)
    assert part.state == whole.state and part.results() == whole.results()
    assert len(whole.lines()) == 2
    del part.state["rougeLsum"]
    with pytest.raises(ValueError, match="another version lack rougeLsum; begin again"):
        TextMetrics(state=part.state)


def test_no_rows_are_no_failure():
    assert set(TextMetrics().results().values()) == {0.0}


@pytest.mark.parametrize(
    ("hypotheses", "references", "said"),
    [
        (["no , it is .", "yes ."], ["no, it is.", "yes."], "the predictions look tokenised"),
        (["no, it is.", "yes."], ["no , it is .", "yes ."], "the references look tokenised"),
        (["no , it is .", "yes ."], ["it is , no .", "yes ."], "predictions and references look"),
        (["Où vas-tu ?", "Quoi !"], ["Où es-tu ?", "Bien !"], None),  # as French is written
        (["Où vas-tu?", "Quoi!"], ["Où es-tu ?", "Bien !"], None),
    ],
)
def test_tokenised_texts_are_named(hypotheses, references, said):
    found = caveats(hypotheses, references, ["bleu"])
    assert found == [] if said is None else (len(found) == 1 and found[0].startswith(said))


def test_unknown_metrics_and_missing_packages_are_named(monkeypatch):
    with pytest.raises(ValueError, match="no metric 'meteor'; choose from bleu, rouge"):
        TextMetrics(["meteor"])
    for name, package, module in (
        ("bleu", "sacrebleu", "sacrebleu"),
        ("rouge", "rouge-score", "rouge_score"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=rf"needs the package {package}, .* 'bart_hk\[metr"):
            TextMetrics([name])
