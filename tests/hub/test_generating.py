"""`generate`, `sample`, `translate`, `stream`: what goes in for each row comes out with it."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bart_hk.errors import CutTextWarning, NothingFoundWarning
from bart_hk.generation.constraints import pack_constraints
from bart_hk.generation.trie import Trie
from bart_hk.hub import collate_tokens

SHORT = {"beam": 2, "max_len_b": 8}
TEXTS = ["Hello world!", "a", "three more words"]


def tokens(found):
    return [hypothesis["tokens"].tolist() for hypothesis in found]


def test_texts_in_texts_out(shared):
    single = shared.sample("Hello world!", **SHORT)
    assert isinstance(single, str)
    assert shared.sample(["one two", "Hello world!"], **SHORT)[1] == single
    assert shared.translate("Hello world!", max_len_b=8) == shared.sample(
        "Hello world!", beam=5, max_len_b=8
    )


def test_generate_takes_one_row_a_matrix_or_a_list(shared):
    rows = [shared.encode("Hello world!"), shared.encode("a")]
    listed = shared.generate(rows, **SHORT)
    padded = shared.generate(collate_tokens(rows, pad_idx=1), **SHORT)
    alone = shared.generate(rows[0], **SHORT)
    for found in (padded[0], alone):
        assert tokens(found) == tokens(listed[0])
    best = listed[0][0]
    assert best["tokens"][0] == 0 and best["tokens"][-1] == 2
    assert best["attention"].shape == (len(rows[0]), len(best["tokens"]))
    assert best["score"] == pytest.approx(
        best["positional_scores"].sum() / len(best["tokens"]), abs=1e-5
    )


def test_nbest_texts_are_a_list(shared):
    options = {"beam": 3, "max_len_b": 8}
    hypotheses = shared.generate(shared.encode(TEXTS), **options)
    found = shared.sample(TEXTS, nbest=2, **options)
    assert found == [[shared.decode(h["tokens"]) for h in row[:2]] for row in hypotheses]
    assert shared.sample(TEXTS, nbest=1, **options) == [row[0] for row in found]
    assert shared.sample(TEXTS[0], nbest=2, **options) == found[0]


def test_a_skipped_input_keeps_its_place(shared):
    rows = [shared.encode("a"), np.full(70, 5), shared.encode("b")]
    with pytest.raises(
        ValueError, match=r"sample #1 is invalid \(=70\) since max_positions=\(64, 64\)"
    ):
        shared.generate(rows, max_len_b=4)
    found = shared.generate(rows, beam=1, max_len_b=4, skip_invalid_size_inputs=True)
    assert found[1] is None and found[0] and found[2]


def test_what_belongs_to_a_skipped_row_is_skipped_with_it(shared):
    rows = [shared.encode("a"), np.full(70, 5), shared.encode("b")]
    prefixes = [[0, 11], [0, 12], [0, 13]]
    skip = {"skip_invalid_size_inputs": True, "beam": 3, "max_len_b": 6}
    found = shared.generate(rows, prefix_tokens=prefixes, **skip)
    assert [row and row[0]["tokens"][1] for row in found] == [11, None, 13]
    phrases = [[[21]], [[22]], [[23]]]
    for constraints in (phrases, pack_constraints(phrases)):
        found = shared.generate(rows, constraints=constraints, **skip)
        assert 21 in found[0][0]["tokens"] and 23 in found[2][0]["tokens"] and found[1] is None
    asked = set()

    def allowed(row, ids):
        asked.add(row)
        return [31 + row, 2]

    found = shared.generate(rows, prefix_allowed_tokens_fn=allowed, **skip)
    assert asked == {0, 2}
    assert {31, 33} <= {int(h["tokens"][1]) for row in (found[0], found[2]) for h in row}

    def last(of_the_last):
        return lambda row, ids: of_the_last if row == 2 else [31, 2]

    # What is said of a row counts those that were skipped.
    with pytest.raises(ValueError, match=r"allows input 2 nothing after \[2, 0\]"):
        shared.generate(rows, prefix_allowed_tokens_fn=last([]), **skip)
    with pytest.warns(NothingFoundWarning, match="no hypothesis for input 2: under") as said:
        found = shared.generate(rows, prefix_allowed_tokens_fn=last([31]), **skip)
    assert len(said) == 1 and found[0] and found[1:] == [None, []]


# --- Prefixes and constraints ---------------------------------------------------------------------


def test_prefixes_are_ids_or_texts_for_each_or_for_all(shared):
    rows = shared.encode(TEXTS)
    prefix = shared.encode(" the cat")[:-1]
    found = shared.generate(rows, prefix_tokens=prefix, **SHORT)
    assert all(h["tokens"][: len(prefix)].tolist() == prefix.tolist() for r in found for h in r)
    each = [prefix, shared.encode(" a")[:-1], np.array([0])]
    listed = shared.generate(rows, prefix_tokens=each, **SHORT)
    padded = shared.generate(rows, prefix_tokens=collate_tokens(each, pad_idx=1), **SHORT)
    assert [tokens(row) for row in listed] == [tokens(row) for row in padded]
    assert tokens(listed[0]) == tokens(found[0])
    alone = shared.generate(rows[1], prefix_tokens=each[1], **SHORT)
    assert tokens(alone) == tokens(listed[1])
    as_text = shared.sample(TEXTS, prefix_tokens=" the cat", **SHORT)
    assert as_text == [shared.decode(row[0]["tokens"]) for row in found]
    assert all(text.startswith(" the cat") for text in as_text)
    texts = shared.sample(TEXTS, prefix_tokens=[" the cat", " a", ""], **SHORT)
    assert texts == [shared.decode(row[0]["tokens"]) for row in listed]
    assert shared.sample(TEXTS[1], prefix_tokens=" a", **SHORT) == texts[1]


def test_constraints_are_phrases_as_texts_or_ids(shared):
    options = {"beam": 4, "max_len_b": 12}
    phrases = [[" cat", " sat on"], [], [" mat"]]
    found = shared.sample(TEXTS, constraints=phrases, **options)
    for text, wanted in zip(found, phrases, strict=True):
        assert all(phrase in text for phrase in wanted)
    assert found[1] == shared.sample(TEXTS, **options)[1]
    assert shared.sample(TEXTS[0], constraints=phrases[0], **options) == found[0]
    ids = [[shared.text.encode(phrase) for phrase in row] for row in phrases]
    rows = shared.encode(TEXTS)
    given = {"constraints": pack_constraints(ids)}
    packed = shared.generate(rows, inference_step_args=given, **options)
    assert [shared.decode(row[0]["tokens"]) for row in packed] == found
    assert list(given) == ["constraints"]  # fairseq adds to the caller's dictionary
    alone = shared.generate(rows[0], constraints=ids[0], **options)
    assert shared.decode(alone[0]["tokens"]) == found[0]


def test_constraints_can_be_ordered(shared):
    options = {"beam": 6, "max_len_b": 10}
    texts = [
        shared.sample("Hello", constraints=phrases, ordered=True, **options)
        for phrases in ([" cat", " dog"], [" dog", " cat"])
    ]
    assert texts[0].index(" cat") < texts[0].index(" dog")
    assert texts[1].index(" dog") < texts[1].index(" cat")


def test_fairseqs_step_arguments(shared):
    rows = shared.encode(TEXTS)
    prefixes = np.array([[0, 5], [0, 6], [0, 7]])
    given = {"prefix_tokens": prefixes}
    found = shared.generate(rows, inference_step_args=given, **SHORT)
    assert [row[0]["tokens"][:2].tolist() for row in found] == prefixes.tolist()
    for _ in range(2):  # fairseq's own fails the second time
        assert shared.generate(rows, inference_step_args=given, **SHORT)
    with pytest.raises(ValueError, match="prefix_tokens is given twice, also in inference_step"):
        shared.generate(rows, inference_step_args=given, prefix_tokens=prefixes)
    with pytest.raises(ValueError, match="may hold prefix_tokens and constraints, not 'prefix'"):
        shared.generate(rows, inference_step_args={"prefix": 1})


def test_a_trie_and_its_function_agree(shared):
    rows = shared.encode(TEXTS)
    outputs = [shared.encode(text) for text in (" yes", " no", " not at all")]
    trie = Trie(outputs, eos=2)
    found = shared.generate(rows, beam=3, prefix_allowed_tokens_fn=trie)
    allowed = {tuple(row.tolist()) for row in outputs}
    assert all({tuple(t) for t in tokens(row)} <= allowed for row in found)
    asked = shared.generate(rows, beam=3, prefix_allowed_tokens_fn=lambda *given: trie(*given))
    assert [tokens(row) for row in asked] == [tokens(row) for row in found]


def test_a_search_leaves_nothing_behind(shared):
    """In fairseq the beam size of a search stays in the decoder's attention."""
    rows = shared.encode(TEXTS)
    before = np.asarray(shared.extract_features(collate_tokens(rows, pad_idx=1)))
    scores = [found["positional_scores"] for found in shared.score(TEXTS, TEXTS)]
    shared.generate(rows, beam=3, max_len_b=8)
    np.testing.assert_array_equal(shared.extract_features(collate_tokens(rows, pad_idx=1)), before)
    for found, score in zip(shared.score(TEXTS, TEXTS), scores, strict=True):
        np.testing.assert_array_equal(found["positional_scores"], score)


# --- Other inputs of a search ---------------------------------------------------------------------


def test_what_was_encoded_need_not_be_encoded_again(shared):
    rows = shared.encode(TEXTS)
    batch = collate_tokens(rows, pad_idx=1)
    encoded = shared.model.encode(shared.params, jnp.asarray(batch))
    found = shared.generate(rows, encoder_out=encoded, **SHORT)
    assert [tokens(r) for r in found] == [tokens(r) for r in shared.generate(rows, **SHORT)]
    zeros = encoded._replace(encoder_out=0 * encoded.encoder_out)
    other = shared.generate(rows, encoder_out=zeros, **SHORT)
    assert [r[0]["score"] for r in other] != [r[0]["score"] for r in found]


def test_a_stream_takes_what_was_encoded(shared):
    row = shared.encode(TEXTS[0])
    encoded = shared.model.encode(shared.params, jnp.asarray(row)[None])
    options = {"beam": 1, "max_len_b": 8}
    text = "".join(shared.stream(TEXTS[0], encoder_out=encoded, **options))
    assert text == shared.sample(TEXTS[0], **options)
    zeros = encoded._replace(encoder_out=0 * encoded.encoder_out)
    assert "".join(shared.stream(TEXTS[0], encoder_out=zeros, **options)) != text
    with pytest.raises(ValueError, match="encoder_out has 5 tokens for input 0, which has 3"):
        shared.stream("a", encoder_out=encoded, **options)


def test_a_language_model_has_a_say(shared):
    word = shared.text.encode(" cat")[0]

    def lm(ids, length):
        logits = jnp.zeros((len(ids), shared.config.vocab_size)).at[:, word].set(20.0)
        return jax.nn.log_softmax(logits)

    plain = shared.sample("Hello", **SHORT)
    fused = shared.sample("Hello", lm=lm, lm_weight=2.0, **SHORT)
    assert " cat cat" in fused and " cat cat" not in plain


def test_unknown_symbols_are_written_as_what_they_are_aligned_with(shared):
    """The model is made to write <unk> at every step."""
    options = {**SHORT, "unkpen": -1000.0}
    plain = shared.sample(TEXTS, **options)
    assert all(text.startswith("<unk><unk>") for text in plain)
    replaced = shared.sample(TEXTS, replace_unk=True, **options)
    for source, text in zip(TEXTS, replaced, strict=True):
        assert text and "<unk>" not in text
        pieces = [shared.decode([i]) for i in shared.text.encode(source)]
        assert all(piece in pieces for piece in pieces if piece in text)
    hypotheses = shared.generate(shared.encode(TEXTS), print_alignment="hard", **options)
    row, best = [*shared.encode(TEXTS[2])], hypotheses[2][0]
    aligned = {at: origin for origin, at in best["alignment"]}
    ids = [row[aligned[at]] for at in range(1, len(best["tokens"]) - 1)]
    assert replaced[2] == shared.decode([i for i in ids if i != 0])
    words = {"three": "drei", "more": "mehr", "words": "Worte"}
    translated = shared.sample(TEXTS[2], replace_unk=words, **options)
    for word, other in words.items():
        assert translated.count(other) == replaced[2].count(word)
    assert any(other in translated for other in words.values())
    assert shared.sample(TEXTS, replace_unk=True, nbest=2, **options)[2][0] == replaced[2]
    with pytest.warns(CutTextWarning, match="a text|text 0") as warned:
        assert "<unk>" not in shared.sample(" the" * 100, replace_unk=True, **options)
    assert len(warned) == 1
    with pytest.raises(ValueError, match="print_alignment='hard' has no meaning in sample"):
        shared.sample("a", print_alignment="hard")
    with pytest.raises(ValueError, match="replace_unk needs hard alignments"):
        shared.sample("a", print_alignment="soft", replace_unk=True, verbose=True)


def test_alignments_are_given_and_logged(shared, caplog):
    row = shared.encode("Hello world!")
    (hard, *_) = shared.generate(row, print_alignment="hard", **SHORT)
    assert all(isinstance(pair, tuple) for pair in hard["alignment"])
    assert [target for _, target in hard["alignment"]] == list(range(len(hard["tokens"]) - 1))
    (soft, *_) = shared.generate(row, print_alignment="soft", attention=False, **SHORT)
    np.testing.assert_allclose(soft["alignment"].T, hard["attention"], atol=1e-6)
    with caplog.at_level(logging.INFO, logger="bart_hk"):
        shared.sample("Hello world!", verbose=True, print_alignment="hard", **SHORT)
    lines = [record.getMessage() for record in caplog.records]
    assert [line[0] for line in lines] == ["S", "H", "P", "A", "H", "P", "A"]
    assert lines[3] == "A\t" + " ".join(f"{s}-{t}" for s, t in hard["alignment"])


def test_verbose_logs_fairseqs_lines(shared, caplog):
    with caplog.at_level(logging.INFO, logger="bart_hk"):
        shared.sample("Hello", beam=2, max_len_b=4, verbose=True)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "S\tHello"
    assert [line[0] for line in lines] == ["S", "H", "P", "H", "P"]


def test_batches_can_be_bounded_for_one_call(shared):
    rows = shared.encode(TEXTS)
    found = shared.generate(rows, max_tokens=8, batch_size=1, **SHORT)
    assert [tokens(r) for r in found] == [tokens(r) for r in shared.generate(rows, **SHORT)]
    with pytest.raises(ValueError, match="batch_size must be a whole number, at least 1, not 0"):
        shared.generate(rows, batch_size=0)


def test_a_list_in_parts_draws_what_the_whole_draws(shared):
    options = {"sampling": True, "beam": 1, "max_len_b": 12}
    texts = ["Hello", "a", "Hello", "Hello"]
    whole = shared.sample(texts, **options)
    assert len({whole[0], whole[2], whole[3]}) == 3
    numbers = [0, 0, 1, 2]  # how many equal ones came before
    parts = [
        shared.sample(texts[part], draw_numbers=numbers[part], **options)
        for part in (slice(0, 3), slice(3, 4))
    ]
    assert parts[0] + parts[1] == whole
    with pytest.raises(ValueError, match="1 draw_numbers do not go with 2 inputs"):
        shared._engine.generator.generate(
            shared.params,
            shared.encode(["a", "b"]),
            shared._options(1, None, False, {"sampling": True}),
            draw_numbers=[0],
        )
    with pytest.raises(ValueError, match="draw_numbers tell draws apart, and nothing is drawn"):
        shared.sample("a", draw_numbers=[0])


def test_a_models_own_options_are_its_defaults(bart):
    bart.extras["generation"] = {"max_len_b": 5, "min_len": 5}
    assert len(bart.generate(bart.encode("a"), beam=1)[0]["tokens"]) == 6
    assert len(bart.generate(bart.encode("a"), beam=1, min_len=3, max_len_b=3)[0]["tokens"]) == 4


def test_a_text_ends_where_it_holds_a_stop_string(shared):
    text = shared.sample("Hello world!", max_len_b=20, min_len=20)
    string = text[len(text) // 2 :][:3]
    stopped = shared.sample("Hello world!", max_len_b=20, min_len=20, stop_strings=string)
    assert string in stopped and text.startswith(stopped) and len(stopped) < len(text)
    (hypothesis, *_) = shared.generate(
        shared.encode("Hello world!"), 1, max_len_b=20, min_len=20, stop_strings=[string, "zzz"]
    )
    tokens = hypothesis["tokens"]
    assert shared.decode(tokens) == stopped and string not in shared.decode(tokens[:-1])
    asked = {"max_len_b": 20, "min_len": 20, "stop_strings": [string]}
    assert "".join(shared.stream("Hello world!", **asked)) == stopped
    with pytest.raises(ValueError, match="stop_strings must be texts of at least one character"):
        shared.sample("Hello", stop_strings="")


# --- Streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"max_len_b": 30},
        {"max_len_b": 40, "sampling": True, "seed": 3},
        {"max_len_b": 12, "sampling": True, "sampling_topk": 50, "temperature": 2.0},
        {"max_len_b": 9, "prefix_tokens": " the cat"},
    ],
    ids=str,
)
def test_a_stream_is_the_sample_piece_by_piece(shared, options):
    pieces = list(shared.stream("Hello world!", **options))
    assert len(pieces) > 3 and all(pieces)
    assert "".join(pieces) == shared.sample("Hello world!", **options)


def test_a_stream_begins_before_it_ends(bart):
    pieces = bart.stream("Hello world!", max_len_b=40, min_len=40)
    seen = []
    step = bart._engine.generator._searched
    bart._engine.generator._searched = lambda *a, **k: seen.append(1) or step(*a, **k)
    next(pieces)
    assert len(seen) < 8
    list(pieces)
    assert len(seen) > 35


@pytest.mark.parametrize("kind", ["trie", "function", "lm", "processor"])
def test_a_stream_is_restricted_and_fused_as_a_sample(shared, kind):
    outputs = [[0, 7, 8, 9], [0, 7, 31, 12], [0, 30]]
    trie = Trie(outputs, eos=2)
    given = {
        "trie": {"prefix_allowed_tokens_fn": trie},
        "function": {"prefix_allowed_tokens_fn": lambda row, ids: trie(row, ids)},
        "lm": {"lm": _likes_31},
        "processor": {"logits_processor": lambda *args: args[2] + _likes_31(*args[:2])},
    }[kind]
    text = shared.sample("Hello world!", max_len_b=6, **given)
    assert "".join(shared.stream("Hello world!", max_len_b=6, **given)) == text
    assert text != shared.sample("Hello world!", max_len_b=6)


def _likes_31(tokens, length):
    return jnp.zeros((len(tokens), 50265)).at[:, 31].set(50.0)


def test_a_stream_that_finds_nothing_says_so(shared):
    with pytest.warns(NothingFoundWarning, match="for input 0: under prefix_allowed_tokens_fn"):
        pieces = shared.stream("Hi", max_len_b=4, prefix_allowed_tokens_fn=lambda row, ids: [31])
        assert list(pieces)


def test_a_progress_bar_counts_inputs(shared, capsys):
    rows = shared.encode(TEXTS)
    shared.generate(rows, **SHORT)
    assert not capsys.readouterr().err
    shared.generate(rows, progress=True, **SHORT)
    assert f"{len(rows)}/{len(rows)}" in capsys.readouterr().err


def test_bounds_of_a_batch_are_numbers(shared):
    with pytest.raises(ValueError, match="max_tokens must be a whole number, at least 1, not 'x'"):
        shared.generate(shared.encode(["a"]), max_tokens="x", **SHORT)
    with pytest.raises(ValueError, match="batch_size must be a whole number, at least 1, not 0"):
        shared.generate(shared.encode(["a"]), batch_size=0, **SHORT)


def test_what_cannot_be_streamed_is_refused_at_once(shared):
    with pytest.raises(ValueError, match="a stream takes no constraints"):
        shared.stream("Hello", constraints=[" cat"])
    with pytest.raises(ValueError, match="needs beam=1 .* not beam=4"):
        shared.stream("Hello", beam=4)
    with pytest.raises(TypeError, match="stream takes one text, not a list"):
        shared.stream(["Hello"])
    with pytest.raises(TypeError, match="no generation option 'max_lenb'"):
        shared.stream("Hello", max_lenb=4)


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lenpn": 2.0}, TypeError, "no generation option 'lenpn'; did you mean 'lenpen'"),
        ({"num_beams": 2}, TypeError, "no generation option 'num_beams'; here it is beam"),
        ({"min_len": 9, "max_len_b": 4}, ValueError, "min_len"),
        ({"beam": 0}, ValueError, "beam must be at least 1, not 0"),
        ({"temperature": 0.0}, ValueError, "temperature must be greater than 0"),
        ({"prefix_tokens": [[0], [0]]}, ValueError, "2 prefixes do not go with 1 inputs"),
        ({"prefix_tokens": [0, 60000]}, ValueError, "id 60000, outside the vocabulary"),
        ({"prefix_tokens": [0, 2]}, ValueError, r"holds </s> \(2\)"),
        ({"constraints": [" cat"]}, TypeError, "of input 0 are a list of phrases, not a text"),
        ({"constraints": [[" a"], [" b"]]}, ValueError, "for 2 inputs do not go with 1 inputs"),
        ({"constraints": [[[60000]]]}, ValueError, "id 60000, outside the vocabulary"),
        ({"constraints": "ordered"}, ValueError, "constraints are the phrases themselves here"),
        ({"ordered": True}, ValueError, "ordered=True says how constraints come"),
    ],
)
def test_wrong_generation_options_are_refused(shared, options, error, message):
    with pytest.raises(error, match=message):
        shared.sample(["Hello"], **options)


def test_empty_strings_and_empty_batches(shared):
    assert isinstance(shared.sample("", beam=1, max_len_b=3), str)
    for call in (shared.sample, shared.score, shared.fill_mask):
        with pytest.raises(ValueError, match="empty batch"):
            call([])
