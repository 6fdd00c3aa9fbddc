"""Dictionaries, labels and languages beside fairseq's checkpoints, and what is written there."""

import io
import json
import re
from pathlib import Path

import pytest
import sentencepiece

from bart_hk.text import GPT2BPE, Dictionary, SentencePieceBPE, TextEncoder, train_bpe
from bart_hk.text.fairseq_folder import misfit, read_labels, read_languages
from bart_hk.text.gpt2_bpe import gpt2_bpe

SENTENCES = Path(__file__).parents[1] / "goldens" / "inputs" / "sentences.txt"
TEXTS = ["the cat sat on the mat", "  Ünï 😀\n", "", "<s> <mask> ~"]


@pytest.fixture(scope="module")
def small() -> TextEncoder:
    return train_bpe(["the cat sat on the mat, the hat"] * 3, 280)


@pytest.fixture(scope="module")
def model() -> bytes:
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES.read_text(encoding="utf-8").splitlines()),
        model_writer=content,
        vocab_size=200,
        minloglevel=2,
    )
    return content.getvalue()


def write(folder: Path, **files: str) -> Path:
    """Files, "__" in their names standing for a dot, "___" for a folder."""
    for name, content in files.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def same(one: TextEncoder, other: TextEncoder) -> bool:
    return (
        one.dictionary == other.dictionary
        and one.dictionary.count == other.dictionary.count
        and one.bpe.symbols == other.bpe.symbols
        and (one.mask, one.mask_id) == (other.mask, other.mask_id)
        and one.tokenizer_class == other.tokenizer_class
        and one.encode_batch(TEXTS) == other.encode_batch(TEXTS)
    )


# --- Reading --------------------------------------------------------------------------------------


def test_a_data_folder_has_its_dictionary_in_input0(tmp_path, small):
    write(tmp_path / "RTE-bin", input0___dict__txt="995 2\n15496 1\n", label___dict__txt="no 5\n")
    encoder = TextEncoder.load(tmp_path / "RTE-bin", languages=())
    assert encoder.encode("Hello world!") == [5, 4, 3] and encoder.mask_id == 6


def test_a_data_folder_uses_the_bpe_of_the_model(tmp_path, model):
    """fairseq finds BPE files beside the checkpoint, dictionaries in the data."""
    pieces = SentencePieceBPE(model).symbols[3:]
    lines = "".join(f"{piece} 1\n" for piece in pieces)
    data = write(tmp_path / "data", dict__txt=lines)
    archive = tmp_path / "archive"
    archive.mkdir()
    (archive / "sentence.bpe.model").write_bytes(model)
    with pytest.raises(ValueError, match="are not those of GPT-2's BPE"):
        TextEncoder.load(data, languages=())
    encoder = TextEncoder.load(data, languages=(), bpe_directory=archive)
    first, *_ = encoder.encode("Alice was")
    assert encoder.dictionary[first] == SentencePieceBPE(model).encode("Alice was").split()[0]
    named = TextEncoder.load(data, languages=(), bpe_files=[archive / "sentence.bpe.model"])
    assert same(named, encoder)
    with pytest.raises(FileNotFoundError, match="the tokenizer's file nowhere is not there"):
        TextEncoder.load(data, languages=(), bpe_files=["nowhere"])


def test_dictionaries_of_two_languages_must_agree(tmp_path):
    """Counts may differ, ids may not."""
    folder = write(
        tmp_path, dict__source__txt="995 2\n15496 1\n", dict__target__txt="995 7\n15496 7\n"
    )
    assert TextEncoder.load(folder).encode("Hello world") == [5, 4]
    for name in ("dict__target__txt", "dict__ro_RO__txt"):
        other = (
            {name: "995 7\n15496 7\n7 1\n"}
            if "target" in name
            else {"dict__target__txt": "995 2\n15496 1\n", name: "15496 2\n995 1\n"}
        )
        with pytest.raises(ValueError) as caught:
            TextEncoder.load(write(tmp_path, **other), languages=())
        message = str(caught.value)
        assert "dict.source.txt and dict." in message and "one vocabulary" in message
        assert "\n" not in message and "save the dictionary" in message
    assert "id 4 is '995' in the first and '15496' in the second" in message
    # With a dict.txt there is no doubt.
    assert TextEncoder.load(write(tmp_path, dict__txt="15496 1\n")).encode("Hello") == [4]


def test_dictionaries_named_by_language_alone(tmp_path):
    folder = write(
        tmp_path, dict__en_XX__txt="995 2\n15496 1\n", dict__ro_RO__txt="995 2\n15496 1\n"
    )
    encoder = TextEncoder.load(folder, languages=["en_XX", "ro_RO"])
    assert encoder.dictionary.symbols[4:] == ["995", "15496", "[en_XX]", "[ro_RO]", "<mask>"]


def test_languages_come_before_the_mask(tmp_path):
    folder = write(tmp_path, dict__txt="995 2\n15496 1\n[ro_RO] 1\n")
    encoder = TextEncoder.load(folder, languages=["en_XX", "ro_RO", "[de_DE]"])
    symbols = ["995", "15496", "[ro_RO]", "[en_XX]", "[de_DE]", "<mask>"]
    assert encoder.dictionary.symbols[4:] == symbols
    assert encoder.mask_id == 9
    assert TextEncoder.load(folder).dictionary.symbols[4:] == [*symbols[:3], "<mask>"]


def test_a_checkpoint_cannot_do_without_a_dictionary(tmp_path, small, model):
    """Other tokenizer files have other ids."""
    small.save(tmp_path)
    TextEncoder.load(tmp_path)
    with pytest.raises(FileNotFoundError) as caught:
        TextEncoder.load(tmp_path, languages=())
    message = str(caught.value)
    assert "\n" not in message and "dict.txt" in message and "data_name_or_path=" in message
    assert str(tmp_path) in message and "input0/dict.txt" in message


def test_labels(tmp_path):
    assert read_labels(tmp_path) is None
    lines = "entailment 9\nnot entailment 5\nmadeupword0000 0\nmadeupword0001 0\n"
    assert read_labels(write(tmp_path, label___dict__txt=lines)) == ["entailment", "not entailment"]
    with pytest.raises(ValueError, match="line 1: 'entailment' is not"):
        read_labels(write(tmp_path, label___dict__txt="entailment\n"))


def test_a_list_of_languages(tmp_path):
    assert read_languages(tmp_path, "/home/x/langs.txt") is None
    write(tmp_path, ML50_langs__txt="en_XX\n\nro_RO\n")
    assert read_languages(tmp_path, "/home/x/langs.txt") == ["en_XX", "ro_RO"]
    write(tmp_path, langs__txt="de_DE\n")
    assert read_languages(tmp_path, "/home/x/langs.txt") == ["de_DE"]


@pytest.mark.parametrize(
    ("symbols", "rows", "reason"),
    [
        (50265, 51201, "bart.large's layout and the model bart.base's"),
        (50264, 51201, "bart.large's layout and the model bart.base's"),
        (51201, 50265, "bart.base's layout and the model bart.large's"),
        (250002, 250027, "the languages of a multilingual model"),
        (300, 60, "that it was trained with"),
    ],
)
def test_a_misfit_is_explained_with_both_sizes(symbols, rows, reason):
    message = misfit(symbols, rows)
    assert f"{symbols} symbols, but the model has embeddings for {rows}" in message
    assert reason in message and "\n" not in message


def test_a_checkpoint_has_no_rows_to_spare(small):
    size = len(small.dictionary)
    assert small.fit(size + 7) is small and small.fit(size, exact=True) is small
    assert len(small.fit(size - 1, exact=True).dictionary) == size - 1
    with pytest.raises(ValueError, match=f"{size} symbols, .* for {size + 7}: its end is missing"):
        small.fit(size + 7, exact=True)


# --- Writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["bart.large", "bart.base"])
def test_the_published_tokenizer(tmp_path, layout):
    encoder = TextEncoder.gpt2(layout)
    assert encoder.save_fairseq(tmp_path) == ([], True)
    names = {"dict.txt", "encoder.json", "vocab.bpe", "tokenizer_config.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    again = TextEncoder.load(tmp_path, languages=())
    assert again.bpe is gpt2_bpe() and same(again, encoder)
    lines = (tmp_path / "dict.txt").read_text().splitlines()
    assert len(lines) == len(encoder.dictionary) - 5 and lines[0] == "13 850314647"


def test_tokens_of_ones_own_become_numbers_and_back(tmp_path, small):
    small.save_fairseq(tmp_path)
    lines = (tmp_path / "dict.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [str(i) for i in range(4, len(lines) + 4)]
    numbers = json.loads((tmp_path / "encoder.json").read_text(encoding="utf-8"))
    assert numbers["the"] == small.dictionary.index("the") and len(numbers) >= 256
    again = TextEncoder.load(tmp_path, languages=())
    assert same(again, small)
    # As fairseq itself would read it.
    (tmp_path / "tokenizer_config.json").unlink()
    plain = TextEncoder.load(tmp_path, languages=())
    assert plain.encode_batch(TEXTS) == small.encode_batch(TEXTS)
    assert plain.dictionary.symbols[4] == "4" and plain.mask_id == small.mask_id


def test_a_small_alphabet_is_completed_for_fairseq(tmp_path):
    symbols = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "ab"]
    bpe = GPT2BPE({"a": "a", "b": "b", "ab": "ab"}, [("a", "b")])
    encoder = TextEncoder(bpe, Dictionary.from_symbols(symbols))
    assert encoder.save_fairseq(tmp_path) == ([], True)
    assert (tmp_path / "dict.txt").read_text() == "<mask> 1\n5 1\n6 1\n7 1\n"
    numbers = json.loads((tmp_path / "encoder.json").read_text(encoding="utf-8"))
    assert len(numbers) == 256 + 1 and len(set(numbers.values())) == len(numbers)
    assert numbers["c"] >= len(symbols)  # none of the dictionary's
    assert same(TextEncoder.load(tmp_path, languages=()), encoder)


def test_rows_without_symbols_and_without_mask(tmp_path, small):
    size = len(small.dictionary)
    (tmp_path / "more").mkdir()
    assert small.save_fairseq(tmp_path / "more", size + 2) == ([], True)
    more = TextEncoder.load(tmp_path / "more", languages=())
    assert len(more.dictionary) == size + 2 and more.mask_id == small.mask_id
    assert more.dictionary.symbols[size:] == [f"madeupword{i:04d}" for i in (size, size + 1)]
    (tmp_path / "fewer").mkdir()
    fewer = small.fit(size - 1)
    assert fewer.save_fairseq(tmp_path / "fewer") == ([], False)
    names = {file.name for file in (tmp_path / "fewer").iterdir()}
    assert {"dict.source.txt", "dict.target.txt"} <= names and "dict.txt" not in names
    assert same(TextEncoder.load(tmp_path / "fewer", languages=()), fewer)
    with pytest.raises(ValueError, match=f"{size} symbols, but the model has embeddings for 9"):
        small.save_fairseq(tmp_path, 9)


@pytest.mark.parametrize("codes", [["[en_XX]", "[ro_RO]"], ["en_XX", "ro_RO"], []])
@pytest.mark.parametrize("kind", ["MBartTokenizer", "BartphoTokenizer"])
def test_sentencepiece_and_languages(tmp_path, model, codes, kind):
    bpe = SentencePieceBPE(model)
    symbols = ["<s>", "<pad>", "</s>", "<unk>", *bpe.symbols[3:], *codes, "<mask>"]
    encoder = TextEncoder(bpe, Dictionary.from_symbols(symbols), tokenizer_class=kind)
    saved = encoder.save_fairseq(tmp_path)
    assert saved == (["en_XX", "ro_RO"] if codes else [], True)
    listed = (tmp_path / "dict.txt").read_text(encoding="utf-8")
    assert "XX" not in listed and "<mask>" not in listed
    assert (tmp_path / "sentencepiece.bpe.model").read_bytes() == model
    assert same(TextEncoder.load(tmp_path, languages=saved.languages), encoder)


def test_special_symbols_under_other_names(tmp_path, small):
    words = {"bos": "[B]", "pad": "[P]", "eos": "[E]", "unk": "[U]"}
    symbols = [*words.values(), *small.dictionary.symbols[4:-1], "[M]"]
    encoder = TextEncoder(small.bpe, Dictionary.from_symbols(symbols, **words), "[M]")
    encoder.save_fairseq(tmp_path)
    again = TextEncoder.load(tmp_path, languages=())
    assert again.dictionary.symbols == symbols and same(again, encoder)


def test_what_fairseq_has_no_place_for(tmp_path, small):
    symbols = ["<pad>", "<s>", "</s>", "<unk>", *small.dictionary.symbols[4:]]
    other = TextEncoder(small.bpe, Dictionary.from_symbols(symbols))
    with pytest.raises(ValueError, match=re.escape("fairseq's dictionaries with <s> <pad> </s>")):
        other.save_fairseq(tmp_path)
    kind = TextEncoder(small.bpe, small.dictionary)
    kind.bpe = object()
    with pytest.raises(ValueError, match="fairseq has no tokenizer of the kind of object"):
        kind.save_fairseq(tmp_path)


def test_new_symbols_have_names(small):
    size = len(small.dictionary)
    more = small.insert_symbols(["[one]", "[two]"])
    assert more.dictionary.symbols[-3:] == ["[one]", "[two]", "<mask>"]
    assert more.mask_id == small.mask_id + 2 and len(small.dictionary) == size
    assert more.encode("the cat [one]") == small.encode("the cat [one]")
    end = small.insert_symbols(["[one]"], before_mask=False)
    assert end.dictionary.symbols[-2:] == ["<mask>", "[one]"] and end.mask_id == small.mask_id
    assert end.decode([size]) == "[one]"
    for names in (["<s>"], ["[a]", "[a]"]):
        with pytest.raises(ValueError, match="it is there already"):
            small.insert_symbols(names)
