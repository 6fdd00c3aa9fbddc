"""`score`, `perplexity` and `fill_mask`, against the network itself."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.data.batching import pad_rows


def log_probs(bart, source, target):
    """float32 [N, V]: of each token of a target, given what comes before it."""
    encoded = bart.model.encode(bart.params, jnp.asarray(source)[None])
    previous = jnp.asarray([2, *target[:-1]])[None]
    features = bart.model.decode(bart.params, previous, encoded).features
    return np.asarray(jax.nn.log_softmax(bart.model.project(bart.params, features))[0])


def test_score_is_the_mean_log_probability_of_the_text(shared):
    one, two = shared.score(["Hello world!", "a"])
    row = shared.encode("Hello world!")
    expected = log_probs(shared, row, row)[np.arange(5), np.asarray(row)]
    np.testing.assert_allclose(one["positional_scores"], expected, atol=1e-4)
    assert float(one["score"]) == pytest.approx(float(expected.mean()), abs=1e-4)
    assert one["tokens"].tolist() == row.tolist() and len(two["tokens"]) == 3
    assert one["attention"].shape == (5, 5)
    assert shared.score(["a"], attention=False)[0]["attention"].shape == (0,)
    assert shared.score("a")["score"] == pytest.approx(two["score"], abs=1e-5)


@pytest.mark.parametrize("given", [{"replace_newline_with_eos": True}, {"targets": True}])
def test_lines_can_be_sentences_of_their_own(shared, given):
    """`score(text, True)` is fairseq's."""
    lines = shared.score("a\nb", **given)
    assert lines["tokens"].tolist() == [0, 102, 2, 0, 428, 2]


def test_given_targets_are_scored(shared):
    sources, targets = ["Hello world!", "a"], ["a longer target", " b"]
    found = shared.score(sources, targets)
    for source, target, hypothesis in zip(sources, targets, found, strict=True):
        row = shared.encode(target)
        expected = log_probs(shared, shared.encode(source), row)[np.arange(len(row)), row]
        np.testing.assert_allclose(hypothesis["positional_scores"], expected, atol=1e-4)
        assert hypothesis["attention"].shape == (len(shared.encode(source)), len(row))
    single = shared.score("Hello world!", "a longer target")
    assert single["score"] == pytest.approx(found[0]["score"], abs=1e-5)
    ids = shared.score([shared.encode(s) for s in sources], [shared.encode(t) for t in targets])
    assert [h["score"] for h in ids] == [h["score"] for h in found]
    pad = shared.config.pad_token_id
    padded = [pad_rows([shared.encode(t) for t in texts], pad) for texts in (sources, targets)]
    ids = shared.score(*padded)
    np.testing.assert_allclose([h["score"] for h in ids], [h["score"] for h in found], atol=1e-5)
    several = shared.score("a", ["x", " b"])
    assert several[1]["score"] == pytest.approx(found[1]["score"], abs=1e-5)


def test_a_generated_text_has_the_score_that_its_search_gave(shared):
    row = shared.encode("Hello world!")
    (best, *_) = shared.generate(row, beam=3, max_len_b=9)
    (again,) = shared.score([row], [best["tokens"]])
    assert again["score"] == pytest.approx(best["score"], abs=1e-4)


def test_perplexity_is_per_token(shared):
    row = shared.encode("a b")
    expected = log_probs(shared, shared.encode("Hello"), row)[np.arange(len(row)), row].mean()
    assert shared.perplexity("Hello", "a b") == pytest.approx(math.exp(-expected), rel=1e-3)
    alone = shared.perplexity(["Hello", "a b"])
    assert alone[1] == pytest.approx(math.exp(-float(shared.score("a b")["score"])), rel=1e-4)
    assert shared.perplexity(["Hello"], ["a b"])[0] == pytest.approx(
        shared.perplexity("Hello", "a b"), rel=1e-4
    )


def test_what_cannot_be_scored_is_refused(shared):
    with pytest.raises(ValueError, match="2 sources do not go with 1 targets"):
        shared.score(["a", "b"], ["c"])
    row = np.full(70, 5)
    with pytest.raises(ValueError, match=r"sample #1 is invalid \(=70\)"):
        shared.score(["a", row])
    with pytest.raises(ValueError, match="target 0 has 70 tokens, but the model has only 64"):
        shared.score(["a"], [row])


def test_what_is_too_long_may_be_skipped(shared):
    row = np.full(70, 5)
    found = shared.score(["a", row, "b"], skip_invalid_size_inputs=True)
    assert found[1] is None
    assert [found[i]["score"] for i in (0, 2)] == [h["score"] for h in shared.score(["a", "b"])]
    assert shared.score([row], skip_invalid_size_inputs=True) == [None]
    assert shared.score(["a"], [row], skip_invalid_size_inputs=True) == [None]


# --- Masks ----------------------------------------------------------------------------------------


def test_fill_mask_matches_the_source_length(shared):
    (found,) = shared.fill_mask(["The cat <mask> on the <mask>."], topk=3, beam=4)
    assert len(found) == 3
    scores = [float(score) for _, score in found]
    assert scores == sorted(scores, reverse=True)
    row = [0, *shared.text.encode("The cat"), 50264, *shared.text.encode(" on the"), 50264,
           *shared.text.encode("."), 2]  # fmt: skip
    hypotheses = shared.generate([np.array(row)], beam=4, match_source_len=True)[0]
    assert all(len(h["tokens"]) == len(row) for h in hypotheses)
    assert [shared.decode(h["tokens"]) for h in hypotheses[:3]] == [text for text, _ in found]
    assert shared.fill_mask("The cat <mask> on the <mask>.", topk=3, beam=4) == found


def test_the_exact_mode_gives_the_distribution_of_the_masked_token(shared):
    text = "The cat <mask> on the mat."
    left, right = shared.text.encode("The cat"), shared.text.encode(" on the mat.")
    source = [0, *left, 50264, *right, 2]
    expected = np.exp(log_probs(shared, source, [0, *left, 0])[-1])
    found = shared.fill_mask(text, topk=5, exact=True)
    best = [int(i) for i in np.argsort(-expected) if i not in (0, 1, 2, 50264)][:5]
    assert [filled for filled, _ in found] == [
        shared.decode([0, *left, token, *right, 2]) for token in best
    ]
    np.testing.assert_allclose([p for _, p in found], expected[best], rtol=1e-3)
    assert found[0][0].startswith("The cat") and found[0][0].endswith(" on the mat.")
    (listed, other) = shared.fill_mask([text, "<mask> b"], topk=5, exact=True)
    assert [t for t, _ in listed] == [t for t, _ in found] and len(other) == 5
    everything = shared.fill_mask(text, topk=10**6, exact=True)
    assert len(everything) == 50265 - 4
    assert 0.99 < sum(p for _, p in everything) <= 1.0 + 1e-4


@pytest.mark.parametrize("topk", [0, -1, 2.5])
def test_topk_is_a_number_of_completions(shared, topk):
    for mode in ({}, {"exact": True}, {"candidates": ["a", "b"]}):
        with pytest.raises(ValueError, match=f"topk must be .* at least 1, not {topk}"):
            shared.fill_mask("a <mask>", topk=topk, **mode)


def test_candidates_are_compared_as_whole_texts(shared):
    text, candidates = "The cat <mask> on the mat.", ["sat", "was very bad", "slept"]
    found = shared.fill_mask(text, candidates=candidates)
    filled = [text.replace("<mask>", candidate) for candidate in candidates]
    source = [0, *shared.text.encode("The cat"), 50264, *shared.text.encode(" on the mat."), 2]
    totals = []
    for whole in filled:
        row = shared.encode(whole)
        totals.append(log_probs(shared, source, row)[np.arange(len(row)), row].sum())
    shares = np.exp(np.array(totals) - max(totals))
    shares /= shares.sum()
    order = np.argsort(-shares)
    assert [t for t, _ in found] == [filled[i] for i in order]
    np.testing.assert_allclose([p for _, p in found], shares[order], rtol=1e-3)
    assert sum(p for _, p in found) == pytest.approx(1)
    assert len(shared.fill_mask(text, topk=2, candidates=candidates)) == 2
    both = shared.fill_mask([text, "<mask> b"], candidates=[candidates, ["x", "y"]])
    assert [t for t, _ in both[0]] == [t for t, _ in found]
    assert {t for t, _ in both[1]} == {"x b", "y b"}


def test_exact_candidates_take_one_pass(bart):
    scorer = bart._engine.scorer
    batches = []
    score = scorer._score
    scorer._score = lambda *a, **k: batches.append(1) or score(*a, **k)
    bart.fill_mask("The cat <mask> on the mat.", candidates=[" sat", " lay", " was", " is"])
    assert len(batches) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((["a <mask>", "b"],), ValueError, "input 1: please add one <mask> token for the input"),
        ((["<mask> <mask>"],), ValueError, "input 0 has 2 <mask> tokens; exactly one"),
        ((["<mask>"], 5, True, {"beam": 4}), TypeError, "beam: options of a search"),
        ((["<mask>"], 5, True, {"candidates": "x"}), TypeError, r"such as \['x'\]"),
        ((["<mask>"], 5, True, {"candidates": []}), ValueError, "at least one candidate"),
        ((["<mask>"], 5, True, {"candidates": [["x"], ["y"]]}), ValueError, "for 2 texts do not"),
    ],
)
def test_what_cannot_be_filled_exactly_is_refused(shared, arguments, error, message):
    *given, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    options = options if "candidates" in options else {"exact": True, **options}
    with pytest.raises(error, match=message):
        shared.fill_mask(*given, **options)


def test_a_mask_is_filled_in_one_way(shared):
    with pytest.raises(ValueError, match="candidates= those texts alone; give one of them"):
        shared.fill_mask("<mask>", exact=True, candidates=["x"])
    for topk in (0, -1, True, 2.0):
        with pytest.raises(ValueError, match=f"at least 1, not {topk}"):
            shared.fill_mask("<mask>", topk=topk)


def test_fill_mask_asks_for_a_mask(shared):
    with pytest.raises(ValueError, match="input 1: please add one <mask> token for the input"):
        shared.fill_mask(["a <mask>", "b"])
