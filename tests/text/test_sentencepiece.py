"""SentencePiece models, trained here on a page of text, under every layout of ids."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece

from bart_hk.text import SentencePieceBPE, TextEncoder

SENTENCES = Path(__file__).parent.parent / "goldens" / "inputs" / "sentences.txt"
TEXTS = ["Alice was beginning", "  the   whale ", "", "\u2603 unheard-of", "<s> <mask>", "a\nb"]


def train(**options) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES.read_text(encoding="utf-8").splitlines()),
        model_writer=model,
        **{"vocab_size": 200, "minloglevel": 2, **options},
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return train()  # <unk> <s> </s> are its first pieces


def directory(path: Path, model: bytes, name="sentencepiece.bpe.model", **settings) -> Path:
    (path / name).write_bytes(model)
    if settings:
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def check_saved(encoder: TextEncoder, folder: Path) -> None:
    encoder.save(folder)
    again = TextEncoder.load(folder)
    assert again.dictionary == encoder.dictionary and again.mask_id == encoder.mask_id
    assert again.tokenizer_class == encoder.tokenizer_class
    assert again.encode_batch(TEXTS) == encoder.encode_batch(TEXTS)


def test_pieces(model):
    bpe = SentencePieceBPE(model)
    pieces = bpe.encode("Alice was")
    assert pieces.split(" ")[0].startswith("\u2581")
    assert bpe.decode(pieces) == "Alice was"
    assert bpe.is_beginning_of_word("\u2581was") and bpe.is_beginning_of_word("</s>")
    assert not bpe.is_beginning_of_word("s")


@pytest.mark.parametrize("options", [{}, {"byte_fallback": True, "vocab_size": 400}], ids=str)
def test_a_text_is_what_its_pieces_add_to_it(options):
    bpe = SentencePieceBPE(train(**options))
    for text in [*TEXTS, "a \u2603 b", "\u00e9"]:
        pieces = bpe.encode(text).split(" ")
        spelt = b"".join(map(bpe.spelling, pieces)).decode()
        assert spelt.strip() == bpe.join(pieces)


def test_a_fairseq_dictionary_gives_the_ids(tmp_path, model):
    pieces = SentencePieceBPE(model).symbols[3:]
    kept = pieces[:150][::-1]
    directory(tmp_path, model, "sentence.bpe.model")
    (tmp_path / "dict.txt").write_text("".join(f"{piece} 1\n" for piece in kept), encoding="utf-8")
    encoder = TextEncoder.load(tmp_path)
    bpe, d = encoder.bpe, encoder.dictionary
    assert (len(d), encoder.mask_id, encoder.tokenizer_class) == (155, 154, "BartphoTokenizer")
    sentences = SENTENCES.read_text(encoding="utf-8").splitlines()
    rows = encoder.encode_batch(sentences)
    # fairseq: the pieces as a line of text, looked up one by one.
    assert rows == [d.encode_line(bpe.encode(s), append_eos=False).tolist() for s in sentences]
    assert 3 in rows[0] + rows[2] + rows[3]  # of the 50 pieces left out
    assert encoder.decode([0, 4, 3, 154, 2, 1]) == f"{kept[0]}<unk><mask>".replace("\u2581", " ")
    check_saved(encoder, tmp_path / "saved")
    (tmp_path / "saved" / "dict.txt").unlink()
    with pytest.raises(ValueError, match="saved has no dict.txt, which says the ids of"):
        TextEncoder.load(tmp_path / "saved")


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        ({"tokenizer_class": "MBartTokenizer"}, 25),
        ({"tokenizer_class": "MBart50TokenizerFast"}, 52),
        ({"tokenizer_class": "XLMRobertaTokenizer"}, 0),
    ],
)
def test_layouts_that_shift_the_models_ids(tmp_path, model, settings, codes):
    encoder = TextEncoder.load(directory(tmp_path, model, **settings))
    bpe, d = encoder.bpe, encoder.dictionary
    assert (d.bos(), d.pad(), d.eos(), d.unk()) == (0, 1, 2, 3)
    assert (len(d), encoder.mask_id) == (202 + codes, 201 + codes)
    if codes:
        assert d.symbols[201] == "ar_AR" and d.index("zh_CN") == 225
    own = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in TEXTS:
        ids = [i + 1 if i else 3 for i in own.encode(text)]
        assert encoder.encode(text) == ids
    assert encoder.decode(encoder.encode("Alice was")) == bpe.decode(bpe.encode("Alice was"))
    check_saved(encoder, tmp_path / "saved")


@pytest.mark.parametrize(("kind", "languages"), [("base", 3), ("multi", 7), (None, 3)])
def test_plbarts_languages(tmp_path, model, kind, languages):
    settings = {"tokenizer_class": "PLBartTokenizer", "language_codes": kind}
    directory(tmp_path, model, **{key: value for key, value in settings.items() if value})
    encoder = TextEncoder.load(tmp_path)
    assert (len(encoder.dictionary), encoder.mask_id) == (202 + languages, 201 + languages)
    assert encoder.dictionary.symbols[201:204] == ["__java__", "__python__", "__en_XX__"]
    check_saved(encoder, tmp_path / "saved")
    about = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert about["language_codes"] == (kind or "base")
    # Those who were fine-tuned on the languages have no <mask>.
    assert encoder.fit(201 + languages).mask_id is None


def test_unknown_plbart_languages(tmp_path, model):
    settings = {"tokenizer_class": "PLBartTokenizer", "language_codes": "cobol"}
    with pytest.raises(ValueError, match="language_codes is 'cobol'; a PLBart has 'base' or"):
        TextEncoder.load(directory(tmp_path, model, **settings))


def test_the_class_may_stand_in_the_models_config(tmp_path, model):
    directory(tmp_path, model)
    (tmp_path / "config.json").write_text('{"model_type": "plbart"}')
    assert TextEncoder.load(tmp_path).tokenizer_class == "PLBartTokenizer"
    (tmp_path / "config.json").write_text('{"model_type": "mbart"}')
    assert TextEncoder.load(tmp_path).tokenizer_class == "MBartTokenizer"
    (tmp_path / "config.json").write_text(
        '{"model_type": "mbart", "tokenizer_class": "BarthezTokenizer"}'
    )
    assert TextEncoder.load(tmp_path).tokenizer_class == "BarthezTokenizer"


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.model", "tokenizer.model"])
def test_a_bare_model_keeps_its_own_ids(tmp_path, name):
    model = train(pad_id=0, bos_id=1, eos_id=2, unk_id=3, user_defined_symbols=["<mask>"])
    encoder = TextEncoder.load(directory(tmp_path, model, name))
    d = encoder.dictionary
    assert (d.pad(), d.bos(), d.eos(), d.unk(), encoder.mask_id, len(d)) == (0, 1, 2, 3, 4, 200)
    own = sentencepiece.SentencePieceProcessor(model_proto=model)
    assert encoder.encode_batch(TEXTS) == own.encode(TEXTS)
    assert encoder.decode([1, *encoder.encode("was beginning"), 2, 0]) == "was beginning"
    check_saved(encoder, tmp_path / "saved")


def test_what_a_bare_model_lacks_can_be_added(tmp_path, model):
    encoder = TextEncoder.load(directory(tmp_path, model))
    d = encoder.dictionary
    assert (d.unk(), d.bos(), d.eos(), d.pad(), encoder.mask_id) == (0, 1, 2, None, None)
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 200, "<mask>": 201}')
    encoder = TextEncoder.load(tmp_path)
    assert (encoder.dictionary.pad(), encoder.mask_id, len(encoder.dictionary)) == (200, 201, 202)
    assert encoder.decode([*encoder.encode("was"), 201, 200]) == "was<mask>"
    check_saved(encoder, tmp_path / "saved")


def test_what_is_not_known_is_named(tmp_path, model):
    with pytest.raises(ValueError, match="'NllbTokenizer' is not known, so the ids of its pieces"):
        TextEncoder.load(directory(tmp_path, model, tokenizer_class="NllbTokenizer"))
    (tmp_path / "dict.txt").write_text("other 1\nwords 1\n")
    with pytest.raises(ValueError, match="are not those of sentencepiece.bpe.model"):
        TextEncoder.load(tmp_path)
    with pytest.raises(ValueError, match="these bytes: not a SentencePiece model"):
        SentencePieceBPE(model[: len(model) // 2])
