"""Noise beside the real fairseq's: the same for the same draws, alike for draws of one's own."""

import collections
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats

from bart_hk.data.draws import KeyedDraws
from bart_hk.data.noising import word_starts
from bart_hk.text import Dictionary, SentencePieceBPE, TextEncoder
from tests.data.recorded_draws import RecordedDraws, noiser
from tools.goldens._noise_cases import BOS, EOS, FULL_STOP, MASK, OPTIONS, VOCAB_SIZE, cases

SPIECE = Path(__file__).parent.parent / "goldens" / "inputs" / "sentences.txt"
ROWS = 4000


def plain_rows(rng: random.Random) -> list[list[int]]:
    """40 to 60 tokens, so that shares of them can be averaged."""
    tokens = [i for i in range(4, MASK) if i != FULL_STOP]
    rows = []
    for _ in range(ROWS):
        inner = [
            FULL_STOP if rng.random() < 0.1 else rng.choice(tokens)
            for _ in range(rng.randint(40, 60))
        ]
        rows.append([BOS, *inner, EOS])
    return rows


def telling_rows(rng: random.Random) -> list[list[int]]:
    """Four sentences of seven tokens, all different but for the full stops: what moved or is gone
    can be told."""
    tokens = [i for i in range(4, MASK) if i != FULL_STOP]
    rows = []
    for _ in range(ROWS):
        drawn = iter(rng.sample(tokens, 24))
        inner = [FULL_STOP if i % 7 == 6 else next(drawn) for i in range(28)]
        rows.append([BOS, *inner, EOS])
    return rows


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> TextEncoder:
    import sentencepiece

    prefix = tmp_path_factory.mktemp("pieces") / "sentencepiece.bpe"
    sentencepiece.SentencePieceTrainer.train(
        input=str(SPIECE), model_prefix=str(prefix), vocab_size=300, minloglevel=2
    )
    bpe = SentencePieceBPE(f"{prefix}.model")
    dictionary = Dictionary()
    for symbol in [*bpe.symbols[3:], "madeupword0000", "<mask>"]:
        dictionary.add_symbol(symbol)
    return TextEncoder(bpe, dictionary, tokenizer_class="BartphoTokenizer")


@pytest.fixture(scope="module")
def answers(oracle, pieces, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("noise")
    rng = random.Random(3)
    given = cases(seed=2, count=150, longest=120)
    starts = [1 if i < 4 or rng.random() < 0.7 else 0 for i in range(VOCAB_SIZE)]
    many = [
        {
            "name": name,
            "options": OPTIONS[name],
            "vocab_size": VOCAB_SIZE,
            "word_starts": None if name == "token_masking_random" else starts,
            "rows": plain_rows(rng),
        }
        for name in ("bart", "infilling_token_by_token", "token_masking_random", "everything")
    ]
    telling = [
        {
            "name": name,
            "options": OPTIONS[name],
            "vocab_size": VOCAB_SIZE,
            "rows": telling_rows(rng),
        }
        | {"word_starts": [1] * VOCAB_SIZE if name == "infilling" else None}
        for name in ("infilling", "permute_sentences")
    ]
    TextEncoder.gpt2().save(folder / "gpt2")
    pieces.save(folder / "pieces")
    (folder / "cases.json").write_text(json.dumps(given))
    (folder / "many.json").write_text(json.dumps([*many, *telling]))
    oracle("oracle_noising.py", folder)
    return {
        "cases": given,
        "many": many,
        "telling": telling,
        **{
            name: json.loads((folder / f"{name}.json").read_text())
            for name in ("answers", "sources", "defects", "tables")
        },
    }


def test_the_same_draws_give_the_same_rows(answers):
    compared = 0
    for case, answer in zip(answers["cases"], answers["answers"], strict=True):
        draws = RecordedDraws([row["draws"] for row in answer])
        found = noiser(case).rows([np.array(row) for row in case["rows"]], draws)
        for ours, theirs in zip(found, answer, strict=True):
            assert ours.tolist() == theirs["source"], case["name"]
            compared += 1
        assert draws.all_used()
    assert compared == 19 * 150


def statistics(rows: list[list[int]], sources: list[list[int]]) -> dict[str, np.ndarray]:
    """Numbers that tell noises apart, one for each row."""
    found = collections.defaultdict(list)
    for row, source in zip(rows, sources, strict=True):
        masks = source.count(MASK)
        left = collections.Counter(row) & collections.Counter(source)
        runs = "".join("m" if token == MASK else " " for token in source).split()
        pairs = set(zip(row, row[1:], strict=False))
        adjacent = sum(pair in pairs for pair in zip(source, source[1:], strict=False))
        found["length"].append(len(source) / len(row))
        found["masks"].append(masks / len(row))
        found["left"].append(left.total() / len(row))
        found["runs of masks"].append(len(runs) / len(row))
        found["neighbours kept"].append(adjacent / len(row))
        found["first token"].append(source[1] == row[1])
        found["first half's share"].append(np.isin(row[: len(row) // 2], source[:20]).mean())
        for length in range(6):
            found[f"runs of {length}"].append(sum(len(run) == length for run in runs))
    return {name: np.array(values, float) for name, values in found.items()}


def test_own_draws_give_the_same_distribution(answers):
    """Means over 4,000 rows, within 4 standard errors of their difference."""
    told = 0
    for many, sources in zip(answers["many"], answers["sources"], strict=False):
        rows = [np.array(row) for row in many["rows"]]
        draws = KeyedDraws(1, 1, np.arange(len(rows)))
        ours = statistics(many["rows"], [r.tolist() for r in noiser(many).rows(rows, draws)])
        theirs = statistics(many["rows"], sources)
        other = {"bart": {"mask": 0.32}}.get(many["name"], {"mask": 0.35, "insert": 0.0})
        wrong = noiser({**many, "options": many["options"] | other}).rows(rows, draws)
        different = statistics(many["rows"], [r.tolist() for r in wrong])

        def distances(one, another):
            return {
                name: abs(one[name].mean() - another[name].mean())
                / max(math.hypot(one[name].std(), another[name].std()) / math.sqrt(ROWS), 1e-9)
                for name in one
            }

        assert max(distances(ours, theirs).values()) < 4, (many["name"], distances(ours, theirs))
        told += max(distances(different, theirs).values()) > 6
    assert told == len(answers["many"])  # another share of masks would have been seen


def spans(row: list[int], source: list[int]) -> list[int]:
    """How many tokens each mask stands for that is between two tokens of the row."""
    place = {token: i for i, token in enumerate(row) if token != FULL_STOP}
    kept = [place.get(token, -1) for token in source]
    return [
        min(kept[i + 1] - kept[i - 1] - 1, 9)
        for i, token in enumerate(source)
        if token == MASK and min(kept[i - 1], kept[i + 1]) >= 0
    ]


def order(row: list[int], source: list[int]) -> list[tuple[int, ...]]:
    """Which of the row's sentences come first, second, ..."""
    number = {token: i // 7 for i, token in enumerate(row[1:-1]) if token != FULL_STOP}
    return [tuple(dict.fromkeys(number[token] for token in source if token in number))]


@pytest.mark.parametrize(
    ("kind", "seen", "other"),
    [(0, spans, {"poisson_lambda": 2.6}), (1, order, {"permute_sentences": 0.75})],
)
def test_spans_and_orders_have_the_histogram_of_fairseqs(answers, kind, seen, other):
    case, theirs = answers["telling"][kind], answers["sources"][len(answers["many"]) + kind]
    rows = [np.array(row) for row in case["rows"]]

    def histogram(sources) -> collections.Counter:
        found = zip(case["rows"], map(list, sources), strict=True)
        return collections.Counter(what for pair in found for what in seen(*pair))

    def p_value(sources) -> float:
        ours, expected = histogram(sources), histogram(theirs)
        assert len(expected) > 8
        keys = ours.keys() | expected.keys()
        table = [[counter[key] for key in keys] for counter in (ours, expected)]
        return scipy.stats.chi2_contingency(table).pvalue

    draws = KeyedDraws(1, 1, np.arange(len(rows)))
    assert p_value(noiser(case).rows(rows, draws)) > 1e-3
    wrong = noiser({**case, "options": case["options"] | other})
    assert p_value(wrong.rows(rows, draws)) < 1e-6


def test_fairseq_noises_the_same_item_differently_and_ours_does_not(answers):
    """B6: fairseq seeds numpy, and draws from torch."""
    assert answers["defects"]["read again"] == "another noise"
    case = answers["cases"][-1]
    rows = [np.array(row) for row in case["rows"]]
    first, again = (noiser(case).rows(rows, KeyedDraws(1, 1, np.arange(150))) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_words_are_those_of_the_tokenizer_in_use(answers, pieces):
    """B7: fairseq asks for a tokenizer by its name, and so never opens the user's files."""
    assert "not found" in answers["defects"]["sentencepiece words"]
    for name, encoder in (("gpt2", TextEncoder.gpt2()), ("pieces", pieces)):
        ours = word_starts(encoder.bpe, encoder.dictionary)
        theirs = np.array(answers["tables"][name], bool)
        assert 0.1 < theirs.mean() < 0.9
        assert np.flatnonzero(ours != theirs).tolist() == [], name
