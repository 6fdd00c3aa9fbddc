"""Noise: fairseq's, given fairseq's draws (golden), keyed by (seed, epoch, index) otherwise."""

import collections
import math

import numpy as np
import pytest

from bart_hk.data.draws import KeyedDraws
from bart_hk.data.noising import (
    PRESETS,
    NoiseConfig,
    Noiser,
    full_stops,
    span_probabilities,
    word_starts,
)
from bart_hk.text import SentencePieceBPE, TextEncoder
from tests.data.recorded_draws import RecordedDraws, noiser

V, MASK, STOP = 1000, 999, 17


def make(config: NoiseConfig, **options) -> Noiser:
    return Noiser(config, **{"vocab_size": V, "mask_id": MASK, "full_stops": [STOP]} | options)


def text_rows(count: int, size: int = 60, seed: int = 0) -> list[np.ndarray]:
    """Rows of distinct ids above 100, with a full stop after every 10th."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        inner = rng.permutation(np.arange(100, 900))[:size]
        inner[9::10] = STOP
        rows.append(np.concatenate([[0], inner, [2]]))
    return rows


def noised(config: NoiseConfig, rows, seed=1, epoch=1, first=0, **options) -> list[np.ndarray]:
    draws = KeyedDraws(seed, epoch, np.arange(first, first + len(rows)))
    return make(config, **options).rows(rows, draws)


def same(one, other) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# --- fairseq, given its draws ---------------------------------------------------------------------


def test_the_same_draws_give_what_fairseq_made_of_the_rows(golden):
    cases = golden("noising/noising.json")["cases"]
    changed = collections.Counter()
    for case in cases:
        answers = case["answers"]
        draws = RecordedDraws([answer["draws"] for answer in answers])
        found = noiser(case).rows([np.array(row) for row in case["rows"]], draws)
        for row, ours, answer in zip(case["rows"], found, answers, strict=True):
            assert ours.tolist() == answer["source"], case["name"]
            changed[case["name"]] += row != answer["source"]
        assert draws.all_used(), case["name"]
    assert len(cases) == 19 and min(changed.values()) >= 2, changed


def test_span_lengths_have_the_probabilities_of_fairseq(golden):
    for rate, expected in golden("noising/noising.json")["spans"].items():
        ours = span_probabilities(float(rate))
        np.testing.assert_allclose(ours, expected, atol=1e-7, rtol=1e-5)


def test_shares_are_rounded_up_as_torch_does(golden):
    """In float32: for 10 words and a third of them that can make one more, or one less."""
    odd = {float(p): dict(pairs) for p, pairs in golden("noising/noising.json")["budgets"].items()}
    assert any(odd.values())
    for share, exceptions in odd.items():
        rows = [np.array([0, *[100] * n, 2]) for n in range(1023)]
        sources = noised(NoiseConfig(mask=share), rows)
        hidden = [int((source == MASK).sum()) for source in sources]
        assert hidden == [exceptions.get(n, math.ceil(n * share)) for n in range(1023)]


# --- Keys -----------------------------------------------------------------------------------------


def test_the_noise_of_a_row_does_not_depend_on_its_neighbours_or_their_order():
    rows = [*text_rows(20), *text_rows(20, 7, seed=1), np.array([0, 2]), np.array([0, 5, 2])]
    everything = NoiseConfig(
        **{**vars(PRESETS["bart"]), "insert": 0.1, "rotate": 0.5, "permute": 0.1}
    )
    together = noised(everything, rows)
    alone = [noised(everything, [row], first=i)[0] for i, row in enumerate(rows)]
    assert same(together, alone)
    order = np.random.default_rng(0).permutation(len(rows))
    shuffled = make(everything).rows([rows[i] for i in order], KeyedDraws(1, 1, order))
    assert same(shuffled, [together[i] for i in order])
    assert same(noised(everything, rows), together)


@pytest.mark.parametrize("other", [{"seed": 2}, {"epoch": 2}, {"first": 1}])
def test_seed_epoch_and_index_each_change_the_noise(other):
    rows = [text_rows(1)[0]] * 10
    config = PRESETS["bart"]
    changed = zip(noised(config, rows), noised(config, rows, **other), strict=True)
    assert sum(not np.array_equal(a, b) for a, b in changed) == 10


def test_streams_of_neighbouring_keys_do_not_share_numbers():
    draws = [KeyedDraws(s, e, [0, 1, 2])._raw(np.full(3, 500)) for s in (1, 2) for e in (0, 1)]
    assert len(np.unique(np.concatenate(draws))) == 4 * 3 * 500


def test_how_a_stream_is_taken_does_not_change_it():
    """Also far beyond what is drawn ahead."""
    whole = KeyedDraws(3, 1, [7])._raw(np.array([5000]))
    piecewise = KeyedDraws(3, 1, [7])
    taken = [piecewise._raw(np.array([n])) for n in (1, 2, 0, 130, 1000, 3867)]
    assert np.array_equal(np.concatenate(taken), whole)


def test_the_streams_are_those_of_philox():
    """numpy keeps the numbers of its bit generators, so these are the same everywhere."""
    bits = np.random.Philox(key=[5, 0x4E4F495345], counter=[0, 9, 4, 0])
    assert np.array_equal(KeyedDraws(5, 4, [9])._raw(np.array([50])), bits.random_raw(50))


def test_global_randomness_is_left_alone():
    state = str(np.random.get_state())  # noqa: NPY002
    noised(PRESETS["bart"], text_rows(3))
    assert str(np.random.get_state()) == state  # noqa: NPY002


def test_spans_are_poisson():
    expected = span_probabilities(3.5)
    drawn = KeyedDraws(1, 1, np.arange(100)).spans(np.full(100, 1000), np.cumsum(expected))
    counts = np.bincount(drawn, minlength=len(expected))
    assert (abs(counts - 1e5 * expected) < 4.5 * np.sqrt(1e5 * expected) + 1).all()


@pytest.mark.parametrize(("size", "kept"), [(4, 4), (9, 2), (13, 3), (4, 1), (5, 1)])
def test_permutations_are_uniform(size, kept):
    """Sorted ones, and those of which a few are picked."""
    possible = math.perm(size, kept)
    expected = 500 if possible < 100 else 50
    count = expected * possible
    draws = KeyedDraws(1, 1, np.arange(count))
    orders = draws.permutations(np.full(count, size), np.full(count, kept)).reshape(-1, kept)
    seen = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(seen) == possible and abs(seen - expected).max() < 5 * math.sqrt(expected)


def test_permutations_of_rows_that_differ():
    """What is sorted for one row and picked for another is what each gets alone."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 60, 200)
    kept = (sizes * rng.choice([0, 0.05, 0.1, 0.5, 1], 200)).astype(np.int64)
    together = KeyedDraws(1, 1, np.arange(200)).permutations(sizes, kept)
    alone = [
        KeyedDraws(1, 1, [i]).permutations(sizes[i : i + 1], kept[i : i + 1]) for i in range(200)
    ]
    assert np.array_equal(together, np.concatenate(alone))
    for found, size, some in zip(alone, sizes, kept, strict=True):
        assert len(set(found.tolist())) == len(found) == some
        assert not len(found) or 0 <= found.min() <= found.max() < size


# --- What each transformation does ----------------------------------------------------------------


def test_token_masking_hides_a_share_of_the_tokens_in_place():
    rows = text_rows(50)
    for row, source in zip(rows, noised(PRESETS["token_masking"], rows), strict=True):
        hidden = source != row
        assert len(source) == len(row) and hidden.sum() == 18  # 30 % of 60
        assert (source[hidden] == MASK).all() and not hidden[[0, -1]].any()


def test_random_tokens_take_the_place_of_a_share_of_the_masks():
    rows = text_rows(200)
    config = NoiseConfig(mask=0.5, mask_random=0.2)
    sources = np.array(noised(config, rows))
    hidden = sources != np.array(rows)
    random = sources[hidden & (sources != MASK)]
    assert abs(len(random) / hidden.sum() - 0.2) < 0.02
    assert random.min() < 20 and random.max() > 980 and random.min() >= 1


def test_token_deletion_leaves_the_rest_in_order():
    rows = text_rows(50)
    for row, source in zip(rows, noised(PRESETS["token_deletion"], rows), strict=True):
        assert len(source) == 62 - 18 and MASK not in source
        left = iter(row.tolist())
        assert all(token in left for token in source.tolist())


def test_text_infilling_replaces_spans_by_one_mask_and_inserts_some():
    rows = text_rows(2000)
    sources = noised(PRESETS["text_infilling"], rows)
    spans = collections.Counter()
    for row, source in zip(rows, sources, strict=True):
        place = {token: i for i, token in enumerate(row.tolist()) if token != STOP}
        # Between two masks everything is as it was, so what is missing can be told.
        kept = [place.get(token, -1) for token in source.tolist()]
        for i, token in enumerate(source.tolist()):
            if token == MASK and min(kept[i - 1], kept[i + 1 : i + 2][0]) >= 0:
                spans[kept[i + 1] - kept[i - 1] - 1] += 1
    total = sum(spans.values())
    expected = span_probabilities(3.0)
    for length in range(1, 7):  # the cut to the budget shortens the last, overlaps lengthen some
        assert abs(spans[length] / total - expected[length]) < 0.05, length
    assert 0.02 < spans[0] / total < 0.07  # 5 %: inserted where nothing was
    shares = [
        1 - np.isin(row, source).sum() / len(row) for row, source in zip(rows, sources, strict=True)
    ]
    assert 0.2 < np.mean(shares) < 0.3  # overlaps hide less than the budget


def test_sentence_permutation_moves_whole_sentences():
    rows, stops = text_rows(30), [STOP, 18, 19]
    moved = parted = 0
    for row in rows:
        row[10::10] = stops * 2
    sources = noised(PRESETS["sentence_permutation"], rows, full_stops=stops)
    for row, source in zip(rows, sources, strict=True):
        sentences = {tuple(s) for s in row[1:-1].reshape(6, 10).tolist()}
        assert {tuple(s) for s in source[1:-1].reshape(6, 10).tolist()} == sentences
        assert source[0] == 0 and source[-1] == 2
        moved += not np.array_equal(row, source)
        # Whether what followed the second sentence, at its own full stop, is elsewhere.
        parted += source[(np.flatnonzero(source == row[11]) + 10)[0] % 61] != row[21]
    assert moved > 28 and parted > 20


def test_document_rotation_turns_the_row():
    rows = text_rows(300)
    firsts = set()
    for row, source in zip(rows, noised(PRESETS["document_rotation"], rows), strict=True):
        inner, turned = row[1:-1].tolist(), source[1:-1].tolist()
        offset = next(
            i for i in range(60) if inner[i:] + inner[:i] == turned
        )  # fails where it is none
        firsts.add(offset)
    assert len(firsts) > 50 and 0 in firsts


def test_insertion_adds_masks():
    for row, source in zip(
        rows := text_rows(20), noised(NoiseConfig(insert=0.2), rows), strict=True
    ):
        assert len(source) == 62 + 13 and (source == MASK).sum() == 13
        assert np.array_equal(source[source != MASK], row) and source[0] == 0 and source[-1] == 2


def test_tokens_change_places():
    for row, source in zip(
        rows := text_rows(20), noised(NoiseConfig(permute=0.5), rows), strict=True
    ):
        assert sorted(source) == sorted(row) and 0 < (source != row).sum() <= 31


def test_whole_words_are_masked_as_one():
    starts = np.zeros(V, bool)
    starts[np.arange(V) % 2 == 0] = True  # odd ids go on with a word
    row = np.array([0, 100, 101, 103, 200, 300, 301, 400, 2])
    config = NoiseConfig(mask=0.5, mask_length="word")
    seen = set()
    for source in noised(config, [row] * 50, word_starts=starts):
        seen.add(tuple(source.tolist()))
    words = [[100, 101, 103], [200], [300, 301], [400]]
    expected = {
        (0, *sum(([MASK] if i in (a, b) else word for i, word in enumerate(words)), []), 2)
        for a in range(4)
        for b in range(a)
    }
    assert seen == expected


# --- Tables that come from the tokenizer ----------------------------------------------------------


def test_gpt2_words_begin_with_a_space():
    encoder = TextEncoder.gpt2()
    table = word_starts(encoder.bpe, encoder.dictionary)
    ids = encoder.encode("Hello unbelievableness, world")
    begins = [encoder.decode([i]).startswith(" ") for i in ids]
    assert table[ids].tolist() == begins and 1 < sum(begins) < len(ids)
    assert table[:4].all() and table.shape == (50265,)


def test_sentencepiece_words_begin_with_its_mark(pieces):
    table = word_starts(pieces.bpe, pieces.dictionary)
    ids = pieces.encode("the hat on a mat")
    symbols = [pieces.dictionary[i] for i in ids]
    assert table[ids].tolist() == [s.startswith("\u2581") for s in symbols]
    assert set(table[ids].tolist()) == {True, False}


@pytest.fixture(scope="module")
def pieces() -> TextEncoder:
    import io

    import sentencepiece

    model = io.BytesIO()
    texts = ["the cat sat on the mat. where is it?", "a hat! (it said.) 3.5 of them"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=33, minloglevel=2
    )
    bpe = SentencePieceBPE(model.getvalue())
    layout = "XLMRobertaTokenizer"
    return TextEncoder(bpe, bpe.dictionary(layout), tokenizer_class=layout)


def test_full_stops_are_found_in_any_vocabulary(pieces):
    encoder = TextEncoder.gpt2()
    stops = full_stops(encoder.bpe, encoder.dictionary)
    shown = {encoder.decode([i]) for i in stops}
    assert {".", " .", "!", "?", '."', ".)", "..."} <= shown
    assert not {",", "a", ".com", " U.S", ";", ".,", "<mask>"} & shown
    assert encoder.dictionary.index("13") in stops and len(stops) < 200
    found = {pieces.dictionary[i] for i in full_stops(pieces.bpe, pieces.dictionary)}
    assert {".", "?", "!"} <= found and not any(c.isalnum() for s in found for c in s)


def test_a_tokenizer_without_words_is_refused():
    encoder = TextEncoder.gpt2()
    with pytest.raises(ValueError, match="a object does not tell where words begin; take mask_le"):
        word_starts(object(), encoder.dictionary)


# --- What cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": 1.5}, r"mask=1.5 must be in \[0, 1\]"),
        ({"rotate": -0.1}, r"rotate=-0.1 must be in \[0, 1\]"),
        ({"mask_length": "sentence"}, "mask_length='sentence' is not one of subword, word, span-p"),
        ({"replace_length": 2}, "replace_length=2 is not one of -1, 0, 1"),
        ({"replace_length": -1}, "mask_length=subword needs replace_length=1 or 0"),
        ({"poisson_lambda": 0.0}, r"poisson_lambda=0.0 must be in \(0, 64\]"),
    ],
)
def test_options_that_there_are_not(options, message):
    with pytest.raises(ValueError, match=message):
        NoiseConfig(**options)


def test_what_the_noise_lacks_is_named():
    bart = PRESETS["bart"]
    with pytest.raises(ValueError, match="needs a <mask>, which the vocabulary does not have"):
        make(bart, mask_id=None)
    with pytest.raises(ValueError, match="mask_id: 1000 is not in a vocabulary of 1000"):
        make(bart, mask_id=1000)
    with pytest.raises(ValueError, match="permute_sentences needs the ids of the full stops"):
        make(bart, full_stops=())
    with pytest.raises(ValueError, match="word_starts knows 3 ids of a vocabulary of 1000"):
        make(bart, word_starts=np.ones(3, bool))


def test_rows_that_are_none():
    with pytest.raises(ValueError, match="every row needs its <s> and </s>"):
        noised(PRESETS["bart"], [np.array([0])])
    with pytest.raises(ValueError, match="the id 1000 is not in a vocabulary of 1000"):
        noised(PRESETS["bart"], [np.array([0, 1000, 2])])
    with pytest.raises(ValueError, match="the id -1 is not in a vocabulary"):
        noised(PRESETS["bart"], [np.array([0, -1, 2])])
    assert noised(PRESETS["bart"], []) == []


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_shortest_rows(name):
    """Nothing to hide, or one token: it ends, and <s> and </s> stay."""
    for size in range(4):
        rows = [np.array([0, *range(200, 200 + size), 2])] * 20
        for source in noised(PRESETS[name], rows):
            assert source[0] == 0 and source[-1] == 2 and len(source) <= size + 4


def test_the_given_rows_are_not_changed():
    rows = [row.astype(np.int32) for row in text_rows(5)]
    copies = [row.copy() for row in rows]
    noised(PRESETS["bart"], rows)
    assert same(rows, copies)
