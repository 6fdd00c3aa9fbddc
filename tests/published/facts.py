"""What is published about the real checkpoints, one function per fact.

Each takes a loaded model and fails where the model says something else. The values are their
sources'; none was run anew for this. `test_published.py` tries them on the real checkpoints,
`test_facts.py` on stand-ins that answer rightly, wrongly and almost rightly.

Sources: README is fairseq's examples/bart/README.md (@3d262bb); HF is transformers'
tests/models/bart/test_modeling_bart.py (@0481e92), DOCS the docstrings of its 5.23.0; RUST is
rust-bert's tests/bart.rs (@6db859e); REPRO is danieldeutsch/repro, models/lewis2020 (@fa7be03).

Facts about whole data sets (GLUE but for MNLI's, SQuAD, ROUGE) are in `data.py`.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.published import upstream

CNN = {"lenpen": 2.0, "max_len_b": 140, "min_len": 55, "no_repeat_ngram_size": 3}
XSUM = {"lenpen": 1.0, "max_len_b": 60, "min_len": 10, "no_repeat_ngram_size": 3}
IDS = [0, 31414, 232, 328, 740, 1140, 12695, 69, 46078, 1588, 2]  # HF's example
IDS_B = [0, 31414, 232, 328, 740, 1140, 69, 46078, 1588, 2, 1]

Read = Callable[[str], str]  # the text of a file by its address


@dataclass(frozen=True)
class Fact:
    """`check` takes what its parameters name: `bart` and `other`, models; `forced` and `unforced`,
    the first one made to begin with <s>, or not; `folder`, where it is; `read`, for files of the
    sources; `mnli`, rows of MNLI's matched development set."""

    models: tuple[str, ...]
    check: Callable[..., None]

    def __str__(self) -> str:
        return f"{self.models[0]}-{self.check.__name__}".replace("/", ":")


FACTS: list[Fact] = []


def fact(*models: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a fact about each of these models; with "a+b" about two of them together."""

    def register(check: Callable[..., None]) -> Callable[..., None]:
        FACTS.extend(Fact(tuple(model.split("+")), check) for model in models)
        return check

    return register


def close(found: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance)


def generated(bart: Any, text: str, **options: Any) -> str:
    """The best hypothesis for a text, as text."""
    return bart.sample([text], **options)[0]


def masked(bart: Any, text: str) -> list[int]:
    """Ids of a text with <mask> in it, as HF's tokenizer gives them."""
    left, right = bart.text.encode_batch([part.rstrip(" ") for part in text.split("<mask>")])
    config = bart.config
    return [config.bos_token_id, *left, bart.text.mask_id, *right, config.eos_token_id]


def top_tokens(bart: Any, text: str, count: int = 5) -> list[str]:
    """The most probable tokens at the <mask>, best first (HF's fill-mask pipeline)."""
    ids = masked(bart, text)
    features = bart.extract_features(np.asarray(ids))[0]
    logits = np.asarray(bart.model.project(bart.params, features[ids.index(bart.text.mask_id)]))
    return [bart.text.decode(np.asarray([i])) for i in np.argsort(-logits)[:count]]


def head(bart: Any) -> str:
    """The name of its only head."""
    (name,) = bart.heads
    return name


# --- fairseq's README -----------------------------------------------------------------------------


@fact("bart.base", "bart.large", "facebook/bart-base", "facebook/bart-large")
def encodes_hello_world(bart: Any) -> None:
    assert bart.encode("Hello world!").tolist() == [0, 31414, 232, 328, 2]
    assert bart.decode(bart.encode("Hello world!")) == "Hello world!"


@fact("bart.large")
def has_features_of_every_layer(bart: Any) -> None:
    tokens = bart.encode("Hello world!")
    features = bart.extract_features(tokens)
    assert features.shape == (1, 5, 1024)
    layers = bart.extract_features(tokens, return_all_hiddens=True)
    assert len(layers) == 13
    close(layers[-1], features, 1e-6)
    assert np.abs(layers[0] - features).max() > 1e-3


@fact("bart.base")
def is_as_large_as_claimed(bart: Any, millions: int = 140, layers: int = 6) -> None:
    parameters = sum(int(np.size(a)) for leaves in bart.params.values() for a in leaves.values())
    close(parameters / 1e6, millions, 0.03 * millions)
    assert (bart.config.encoder_layers, bart.config.decoder_layers) == (layers, layers)


@fact("bart.large")
def is_as_large_as_claimed_too(bart: Any) -> None:
    is_as_large_as_claimed(bart, 400, 12)


CONTRADICTION = ("BART is a seq2seq model.", "BART is not sequence to sequence.")
ENTAILMENT = ("BART is denoising autoencoder.", "BART is version of autoencoder.")


@fact("bart.large.mnli")
def infers(bart: Any) -> None:
    rows = [bart.encode(*pair) for pair in (CONTRADICTION, ENTAILMENT)]
    assert [int(bart.predict("mnli", row).argmax()) for row in rows] == [0, 2]
    assert bart.predict("mnli", rows).argmax(-1).tolist() == [0, 2]


@fact("bart.large.mnli")
def is_right_about_mnli(bart: Any, mnli: list[tuple[str, str, str]]) -> None:
    labels = ["contradiction", "neutral", "entailment"]
    right = 0
    for start in range(0, len(mnli), 256):
        rows = mnli[start : start + 256]
        found = bart.predict("mnli", bart.encode([(a, b) for a, b, _ in rows], truncate=True))
        right += sum(
            labels[int(i)] == row[2] for i, row in zip(found.argmax(-1), rows, strict=True)
        )
    close(right / len(mnli), 0.9010, 0.0005)


def mnli_rows(path: Path) -> list[tuple[str, str, str]]:
    """(premise, hypothesis, label) of GLUE's dev_matched.tsv."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence1"], row["sentence2"], row["gold_label"]) for row in rows]


CAT = [("The cat was on the ground.", -0.6183), ("The cat was on the floor.", -0.6798)]
CAT += [("The cat sleeps on the couch.", -0.6830)]
CAT_FREE = [("The cat was on the ground.", -0.6185), ("The cat was asleep on the couch.", -0.6276)]
CAT_FREE += [("The cat was on the floor.", -0.6800)]
DOG = [("The dog was on the ground.", -0.6190), ("The dog lay on the ground.", -0.6711)]
DOG += [("The dog was asleep on the couch", -0.6796)]
CAT_TEXT, DOG_TEXT = "The cat <mask> on the <mask>.", "The dog <mask> on the <mask>."


def same_fillings(found: Any, expected: list[tuple[str, float]]) -> None:
    assert [text for text, _ in found] == [text for text, _ in expected]
    close([score for _, score in found], [score for _, score in expected], 1e-3)


@fact("bart.base")
def fills_masks(bart: Any) -> None:
    (found,) = bart.fill_mask([CAT_TEXT], topk=3, beam=10)
    same_fillings(found, CAT)


@fact("bart.base")
def fills_masks_of_any_length(bart: Any) -> None:
    (found,) = bart.fill_mask([CAT_TEXT], topk=3, beam=10, match_source_len=False)
    same_fillings(found, CAT_FREE)


@fact("bart.base")
def fills_a_batch_of_masks(bart: Any) -> None:
    cat, dog = bart.fill_mask([CAT_TEXT, DOG_TEXT], topk=3, beam=10)
    same_fillings(cat, CAT)
    same_fillings(dog, DOG)


# --- The two vocabularies (fairseq #3150, transformers #9731) -------------------------------------


@fact("bart.base")
def has_madeup_words_before_its_mask(bart: Any) -> None:
    indices = bart.task.source_dictionary.indices
    assert indices["<mask>"] == 51200
    assert indices["madeupword0003"] == 50264
    assert bart.config.vocab_size == 51201


@fact("facebook/bart-base", "facebook/bart-large", "bart.large")
def has_its_mask_at_50264(bart: Any) -> None:
    assert bart.text.mask_id == 50264
    assert bart.config.vocab_size == 50265


@fact("bart.base+facebook/bart-base")
def row_50264_is_the_same_in_both(bart: Any, other: Any) -> None:
    tables = [model.params["embed_tokens"]["embeddings"] for model in (bart, other)]
    close(tables[0][50264], np.asarray(tables[1][50264]), 1e-6)


@fact("facebook/bart-base")
def calls_the_cat_adorable(forced: Any) -> None:
    text = "<mask> cat is <mask>."
    (first, _), *_ = forced.fill_mask([text], topk=1, beam=10, match_source_len=False)[0]
    assert first == "This cat is adorable."


# --- transformers ---------------------------------------------------------------------------------


@fact("facebook/bart-large", "bart.large")
def has_features(bart: Any) -> None:
    """HF, test_inference_no_head; fairseq's weights are the same."""
    features = bart.extract_features(np.asarray(IDS))
    assert features.shape == (1, 11, 1024)
    expected = [[0.7144, 0.8143, -1.2813], [0.7144, 0.8143, -1.2813], [-0.0467, 2.5911, -2.1845]]
    close(features[0, :3, :3], expected, 1e-3)


@fact("facebook/bart-large-mnli", "bart.large.mnli")
def has_logits(bart: Any) -> None:
    """HF, test_mnli_inference."""
    logits = bart.predict(head(bart), np.asarray([IDS, IDS_B]), return_logits=True)
    close(logits[0], [0.1907, 1.4342, -1.0289], 1e-3)
    alone = bart.predict(head(bart), np.asarray(IDS_B[:-1]), return_logits=True)
    close(logits[1], np.asarray(alone).reshape(-1), 1e-3)


@fact("facebook/bart-base")
def goes_to_the_bathroom(bart: Any) -> None:
    """HF, test_base_mask_filling."""
    assert " bathroom" in top_tokens(bart, " I went to the <mask>.")


@fact("facebook/bart-large")
def goes_to_five_places(bart: Any) -> None:
    """HF, test_large_mask_filling."""
    expected = [" bathroom", " gym", " wrong", " movies", " hospital"]
    assert top_tokens(bart, " I went to the <mask>.") == expected


UN_TEXT = "UN Chief Says There Is No <mask> in Syria"
UN = "UN Chief Says There Is No Plan to Stop Chemical Weapons in Syria"


PEACE = "UN Chief Says There Is No Plan B for Peace in Syria"
BARRIENTOS = (
    "Liana Barrientos, 39, pleaded not guilty to charges related to false marriage statements. "
    "Prosecutors say she married at least 10 times, sometimes within two weeks of each other. She "
    "is accused of being part of an immigration scam to get permanent residency. If convicted, she "
    "faces up to four years in"
)


def completed(bart: Any, text: str, max_len_b: int = 18) -> str:
    """With the search settings of the repository facebook/bart-large."""
    options = {"beam": 4, "no_repeat_ngram_size": 3, "max_len_b": max_len_b, "attention": False}
    return bart.decode(bart.generate([np.asarray(masked(bart, text))], **options)[0][0]["tokens"])


@fact("facebook/bart-large")
def completes_a_headline(forced: Any) -> None:
    """transformers #12296."""
    assert completed(forced, UN_TEXT) == UN


@fact("facebook/bart-large")
def does_not_without_its_first_token(unforced: Any) -> None:
    """transformers #12296."""
    assert completed(unforced, UN_TEXT) == "UNALSO SEE"


@fact("facebook/bart-large")
def continues_after_padding(forced: Any) -> None:
    """HF, test_decoder_attention_mask: the decoder is given `</s> <pad> <pad> <pad> <s>`.

    Nothing looks at the padding, but what follows it stands three positions further on. So it is
    without padding if the positions are moved instead. (transformers does not count these tokens in
    a hypothesis' length, which can matter where hypotheses are nearly as good.)
    """
    params, offset = forced.params, forced.config.position_offset
    table = np.array(params["decoder/embed_positions"]["embeddings"])
    moved = table.copy()
    moved[offset + 1 : -3] = table[offset + 4 :]
    forced.params = {**params, "decoder/embed_positions": {"embeddings": moved}}
    try:
        assert completed(forced, UN_TEXT, max_len_b=20) == PEACE
    finally:
        forced.params = params


@fact("facebook/bart-large-cnn")
def contrasts(bart: Any, read: Read) -> None:
    """HF, test_contrastive_search_bart, with the repository's other settings."""
    given = upstream.constants(read(upstream.HF), "test_contrastive_search_bart")
    ids = np.asarray(bart.text.encode(given["article"])[:512])  # without <s> and </s>
    search = {**CNN, "lenpen": 1.0, "max_len_b": 62, "beam": 1, "attention": False}
    found = bart.generate([ids], penalty_alpha=0.5, sampling_topk=5, **search)
    assert bart.decode(found[0][0]["tokens"]) == BARRIENTOS


@fact("facebook/bart-large-xsum")
def summarises_the_blackouts(bart: Any, read: Read) -> None:
    """HF, test_xsum_summarization_same_as_fairseq."""
    article = upstream.constants(read(upstream.HF), "test_xsum_summarization_same_as_fairseq")
    found = generated(bart, article["PGE_ARTICLE"], beam=2, **XSUM)
    assert found == upstream.without_specials(article["EXPECTED_SUMMARY"])


@fact("facebook/bart-large-cnn")
def summarises_the_blackouts_in_20_tokens(bart: Any, read: Read) -> None:
    """DOCS, BartForConditionalGeneration."""
    article = upstream.constants(read(upstream.HF), "test_xsum_summarization_same_as_fairseq")
    text = article["PGE_ARTICLE"].strip()
    found = generated(bart, text, beam=2, **{**CNN, "min_len": 0, "max_len_b": 18})
    assert found == (
        "PG&E scheduled the blackouts in response to forecasts for high winds amid dry conditions"
    )


@fact("facebook/bart-large-cnn", "bart.large.cnn")
def summarises_four_articles(bart: Any, read: Read) -> None:
    """HF, test_cnn_summarization_same_as_fairseq; the second token is always <s>."""
    given = upstream.constants(read(upstream.HF), "test_cnn_summarization_same_as_fairseq")
    names = ("FRANCE_ARTICLE", "SHORTER_ARTICLE", "IRAN_ARTICLE", "ARTICLE_SUBWAY")
    rows = bart.encode([given[name] for name in names], truncate=True)
    found = bart.generate(rows, beam=2, attention=False, **CNN)
    assert all(int(hypotheses[0]["tokens"][0]) == 0 for hypotheses in found)
    expected = [upstream.without_specials(text) for text in given["EXPECTED"]]
    assert [bart.decode(hypotheses[0]["tokens"]) for hypotheses in found] == expected


@fact("sshleifer/distilbart-xsum-1-1")
def summarises_with_two_layers(bart: Any, read: Read) -> None:
    """HF, test_xsum_1_1_generation."""
    given = upstream.constants(read(upstream.HF), "test_xsum_1_1_generation")
    assert (bart.config.encoder_layers, bart.config.decoder_layers) == (1, 1)
    found = generated(bart, given["ARTICLE"], beam=4, **XSUM)
    assert found == upstream.without_specials(given["EXPECTED"])


@fact("sshleifer/distilbart-xsum-1-1")
def has_encoder_features(bart: Any, read: Read) -> None:
    """HF, test_xsum_1_1_batch_generation, whose first article is the one of the other test."""
    article = upstream.constants(read(upstream.HF), "test_xsum_1_1_generation")["ARTICLE"]
    rows = np.asarray(bart.encode(article, truncate=True))[None]
    features = np.asarray(bart.model.encode(bart.params, rows).encoder_out)
    expected = [[-0.0828, -0.0251, -0.0674], [0.1277, 0.3311, -0.0255], [0.2613, -0.0840, -0.2763]]
    close(features[0, :3, :3], expected, 1e-3)


THREE_PARTS = (
    "This sentence is made of three parts. Each part is important on its own. One part is about "
    "animals, the other part about planes, and the last part about housing."
)


@fact("sshleifer/distilbart-cnn-6-6")
def shortens_three_parts(bart: Any) -> None:
    """transformers' test_modeling_flax_bart.py: 20 tokens, fewer than its shortest summary."""
    options = {**CNN, "min_len": 18, "max_len_b": 18}
    assert generated(bart, THREE_PARTS, beam=2, **options) == (
        "This sentence is made of three parts. One part is about animals, the other part"
    )


@fact("facebook/bart-large-xsum")
def recommends_its_settings(folder: Path) -> None:
    """HF, test_xsum_config_generation_params."""
    found: dict[str, Any] = {"do_sample": False, "length_penalty": 1.0}
    for name in ("config.json", "generation_config.json"):
        if (folder / name).exists():
            found |= json.loads((folder / name).read_text(encoding="utf-8"))
    expected = {"num_beams": 6, "do_sample": False, "early_stopping": True, "length_penalty": 1.0}
    assert {key: found.get(key) for key in expected} == expected


@fact("facebook/bart-base")
def has_healthy_friends(bart: Any) -> None:
    """DOCS, mask filling."""
    found = top_tokens(bart, "My friends are <mask> but they eat too many carbs.")
    assert [token.strip() for token in found] == ["not", "good", "healthy", "great", "very"]


@fact("facebook/bart-large", "facebook/bart-base")
def tokenizes(bart: Any) -> None:
    """transformers' test_tokenization_bart.py (@0f7b941)."""
    ids = bart.encode("A long paragraph for summarization.").tolist()
    assert ids == [0, 250, 251, 17818, 13, 39186, 1938, 4, 2]
    ids = masked(bart, "A, <mask> AllenNLP sentence.")
    assert ids == [0, 250, 6, 50264, 3823, 487, 21992, 3645, 4, 2]


# --- rust-bert ------------------------------------------------------------------------------------

QUESTION = "Who are you voting for in 2020?"
STIMULUS = (
    "The prime minister has announced a stimulus package which was widely criticized by the "
    "opposition."
)
TOPICS = ["politics", "public health", "economy", "sports"]


def topic_logits(bart: Any, text: str) -> np.ndarray:
    """[topics, 3]: does the text entail that it is about the topic?"""
    pairs = [bart.encode(text, f"This example is about {t}.", no_separator=False) for t in TOPICS]
    return np.asarray(bart.predict(head(bart), pairs, return_logits=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


@fact("facebook/bart-large-mnli")
def knows_topics(bart: Any) -> None:
    """RUST: one of the topics, by the logits of entailment."""
    for text, index, probability in ((QUESTION, 0, 0.9630), (STIMULUS, 2, 0.6416)):
        found = softmax(topic_logits(bart, text)[:, 2])
        assert int(found.argmax()) == index
        close(found[index], probability, 1e-3)


@fact("facebook/bart-large-mnli")
def knows_several_topics(bart: Any) -> None:
    """RUST: each of the topics, entailment against contradiction."""
    expected = {
        QUESTION: [0.9805, 0.0130, 0.0255, 0.0013],
        STIMULUS: [0.9432, 0.0045, 0.9851, 0.0004],
    }
    for text, probabilities in expected.items():
        found = softmax(topic_logits(bart, text)[:, [0, 2]])[:, 1]
        close(found, probabilities, 1e-3)


@fact("sshleifer/distilbart-cnn-6-6")
def counts_to_four(bart: Any) -> None:
    """RUST, bart_lm_model."""
    features = bart.extract_features(bart.encode("One two three four"))
    assert features.shape == (1, 6, 1024)
    close(features[0, 0, 0], 0.2610, 1e-4)


@fact("sshleifer/distilbart-cnn-6-6")
def summarises_a_discovery(bart: Any, read: Read) -> None:
    """RUST, bart_summarization_greedy and _beam_search (4 beams), its SummarizationConfig."""
    for test, beam in (("bart_summarization_greedy", 1), ("bart_summarization_beam_search", 4)):
        article, *expected = upstream.rust_strings(read(upstream.RUST), test)
        found = generated(bart, article, beam=beam, **{**CNN, "lenpen": 1.0})
        assert found.strip() == "".join(expected).strip()


# --- danieldeutsch/repro --------------------------------------------------------------------------


@fact("bart.large.cnn")
def summarises_the_tower(bart: Any, read: Read) -> None:
    """REPRO, test_bart_cnn."""
    given = json.loads(read(upstream.REPRO))["CNNDM"]
    assert generated(bart, given["document"], beam=4, **CNN) == given["summary"]


@fact("bart.large.xsum")
def summarises_the_tower_in_a_sentence(bart: Any, read: Read) -> None:
    """REPRO, test_bart_xsum."""
    given = json.loads(read(upstream.REPRO))["XSum"]
    assert generated(bart, given["document"], beam=6, **XSUM) == given["summary"]


@fact("bart.large.cnn")
def has_four_best_summaries(bart: Any, read: Read) -> None:
    """REPRO, test_bart_cnn_nbest: the best 4 of 8 beams."""
    given = json.loads(read(upstream.REPRO))["nbest"]
    found = bart.generate([bart.encode(given["document"])], beam=8, attention=False, **CNN)[0]
    assert [bart.decode(h["tokens"]) for h in found[:4]] == given["summaries"]
