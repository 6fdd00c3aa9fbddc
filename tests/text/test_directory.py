"""Which tokenizer files a directory may hold, and that what is saved is what is loaded again."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bart_hk.text import GPT2BPE, Dictionary, TextEncoder, train_bpe
from bart_hk.text.gpt2_bpe import gpt2_bpe

TEXTS = ["the cat sat on the mat", "the theatre", "  Ünï 😀\n", "", "<s> <mask> ~"]
FILES = {"dict.txt", "encoder.json", "merges.txt", "tokenizer_config.json", "vocab.json"}


@pytest.fixture(scope="module")
def small() -> TextEncoder:
    return train_bpe(["the cat sat on the mat, the hat"] * 3, 280)


def write(folder: Path, **files: object) -> Path:
    """Writes files, "__" in their names standing for a dot: text as it is, the rest as JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return folder


def same(one: TextEncoder, other: TextEncoder) -> bool:
    return (
        one.dictionary == other.dictionary
        and one.dictionary.count == other.dictionary.count
        and one.bpe.symbols == other.bpe.symbols
        and one.mask_id == other.mask_id
        and one.tokenizer_class == other.tokenizer_class
        and one.encode_batch(TEXTS) == other.encode_batch(TEXTS)
        and [one.decode(row) for row in one.encode_batch(TEXTS)]
        == [other.decode(row) for row in other.encode_batch(TEXTS)]
    )


@pytest.mark.parametrize("layout", ["bart.large", "bart.base"])
def test_the_shipped_encoder_is_saved_for_transformers_fairseq_and_us(tmp_path, layout):
    encoder = TextEncoder.gpt2(layout)
    encoder.save(tmp_path / "new" / "model", model_max_length=1024)
    folder = tmp_path / "new" / "model"
    assert {file.name for file in folder.iterdir()} == FILES
    assert same(TextEncoder.load(folder), encoder)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    assert vocabulary["Hello"] == 31414 and vocabulary["<mask>"] == encoder.mask_id
    assert len(vocabulary) == len(encoder.dictionary)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (settings["tokenizer_class"], settings["model_max_length"]) == ("BartTokenizer", 1024)
    # What fairseq reads.
    assert json.loads((folder / "encoder.json").read_text(encoding="utf-8"))["Hello"] == 15496
    assert (folder / "dict.txt").read_text().startswith("13 850314647\n262 800385005\n")


def test_gpt2_files_need_a_dictionary_alone(tmp_path):
    """As fairseq's archives of bart.large and, with dict.source.txt, of bart.large.cnn."""
    dictionary = "995 2\n15496 1\n"
    for name in ("dict__txt", "dict__source__txt"):
        encoder = TextEncoder.load(write(tmp_path / name, **{name: dictionary}))
        assert encoder.bpe is gpt2_bpe()
        assert (encoder.encode("Hello world!"), encoder.mask_id) == ([5, 4, 3], 6)
        assert encoder.decode([5, 4]) == "Hello world"


def test_fairseqs_own_bpe_files(tmp_path):
    files = {"dict__txt": "2 5\n0 3\n1 2\n", "encoder__json": {"a": 0, "b": 1, "ab": 2}}
    merges = "#version: 0.2\na b\n"
    for name in ("vocab__bpe", "merges__txt"):
        encoder = TextEncoder.load(write(tmp_path / name, **files, **{name: merges}))
        assert encoder.encode("abba") == [4, 6, 5] and encoder.decode([4, 6, 5]) == "abba"
        encoder.save(tmp_path / "saved")
        assert same(TextEncoder.load(tmp_path / "saved"), encoder)


def test_hugging_face_vocabulary(tmp_path, small):
    small.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == FILES - {"dict.txt", "encoder.json"}
    again = TextEncoder.load(tmp_path)
    assert same(again, small)
    assert again.encode("the") == [small.dictionary.index("the")]


def test_hugging_face_files_of_bart_have_fairseqs_symbols(tmp_path):
    encoder = TextEncoder.gpt2()
    encoder.save(tmp_path)
    (tmp_path / "dict.txt").unlink()
    (tmp_path / "encoder.json").unlink()
    again = TextEncoder.load(tmp_path)
    assert again.bpe.encode("Hello world") == "15496 995"
    assert again.dictionary == encoder.dictionary and again.mask_id == 50264


def test_hugging_face_files_beside_a_fairseq_dictionary(tmp_path):
    """Their vocab.json has the dictionary's ids, not the GPT-2 ids that the dictionary lists."""
    encoder = TextEncoder.gpt2("bart.base")
    encoder.save(tmp_path)
    (tmp_path / "encoder.json").unlink()
    assert same(TextEncoder.load(tmp_path), encoder)


def test_special_tokens_have_the_names_and_ids_of_the_directory(tmp_path, small):
    learnt = small.dictionary.symbols[4:-1]
    symbols = ["[PAD]", *learnt, "[MASK]", "[B]", "[E]", "[UNK]"]
    folder = write(
        tmp_path,
        vocab__json={symbol: index for index, symbol in enumerate(symbols)},
        merges__txt="#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in small.bpe.merges),
        special_tokens_map__json={"pad_token": "[PAD]", "mask_token": {"content": "[MASK]"}},
        tokenizer_config__json={"bos_token": "[B]", "eos_token": "[E]", "unk_token": "[UNK]"},
    )
    encoder = TextEncoder.load(folder)
    d, size = encoder.dictionary, len(symbols)
    assert (d.pad(), encoder.mask_id, d.bos(), d.eos(), d.unk()) == (0, *range(size - 4, size))
    assert encoder.decode([size - 3, *encoder.encode("the mat"), size - 2, 0, 0]) == "the mat"
    encoder.save(tmp_path / "saved")
    assert same(TextEncoder.load(tmp_path / "saved"), encoder)


def test_tokens_that_were_added_to_a_vocabulary(tmp_path, small):
    small.save(tmp_path)
    size = len(small.dictionary)
    write(tmp_path, added_tokens__json={"<one>": size + 1, "<s>": 0})
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["added_tokens_decoder"] = {str(size): {"content": "<zero>"}}
    write(tmp_path, tokenizer_config__json=settings)
    encoder = TextEncoder.load(tmp_path)
    assert encoder.dictionary.symbols[size:] == ["<zero>", "<one>"]
    assert encoder.decode([size, size + 1]) == "<zero><one>"


def tokenizer_json(encoder: TextEncoder) -> str:
    """A tokenizer.json, as transformers saves one, that pads and truncates."""
    merges = encoder.bpe.merges
    tokenizer = Tokenizer(models.BPE(encoder.dictionary.indices, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=6)
    assert len(tokenizer.encode("the cat sat on").ids) == 6
    return tokenizer.to_str()


def test_stored_truncation_and_padding_of_a_tokenizer_json_are_ignored(tmp_path, small):
    encoder = TextEncoder.load(write(tmp_path, tokenizer__json=tokenizer_json(small)))
    assert same(encoder, small)
    content = json.loads(tokenizer_json(small))
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    assert same(TextEncoder.load(write(tmp_path, tokenizer__json=content)), small)


def test_a_tokenizer_json_of_single_characters(tmp_path):
    """Sixty-odd characters, pad = 0, no byte-level BPE: anything the library can do."""
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "<mask>", *" abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>", "<mask>"])
    tokenizer.add_tokens(["[x]"])
    tokenizer.enable_truncation(1)
    encoder = TextEncoder.load(write(tmp_path, tokenizer__json=tokenizer.to_str()))
    assert (len(encoder.dictionary), encoder.mask_id, encoder.dictionary.pad()) == (33, 4, 0)
    assert encoder.encode("a b!") == [6, 5, 7, 3]
    assert encoder.encode("<s>[x]") == [3, symbols.index("s"), 3, 32]
    assert encoder.decode([1, 6, 5, 7, 4, 2, 0]) == "a b<mask>"
    assert encoder.bpe.decode(encoder.bpe.encode("ab")) == "ab"
    encoder.save(tmp_path / "saved")
    assert same(TextEncoder.load(tmp_path / "saved"), encoder)


def test_a_unigram_tokenizer_json_does_not_read_special_tokens_from_text(tmp_path):
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -1.0)]
    pieces += [(character, -2.0) for character in "abs"]
    tokenizer = Tokenizer(models.Unigram(pieces, 3, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    encoder = TextEncoder.load(write(tmp_path, tokenizer__json=tokenizer.to_str()))
    assert encoder.encode("ab") == [4, 5, 6]
    assert encoder.encode("a<s>") == [4, 5, 3]
    assert encoder.decode([0, 4, 5, 6, 2, 1]) == "ab"


def test_saving_removes_the_files_of_another_tokenizer(tmp_path, small):
    write(tmp_path, dict__txt="15496 1\n", special_tokens_map__json={}, config__json={})
    small.save(tmp_path)
    assert not (tmp_path / "dict.txt").exists() and (tmp_path / "config.json").exists()
    assert same(TextEncoder.load(tmp_path), small)


def test_a_model_without_mask(tmp_path):
    encoder = TextEncoder.gpt2().fit(50264)
    assert encoder.mask_id is None and len(encoder.dictionary) == 50264
    assert TextEncoder.gpt2().mask_id == 50264
    encoder.save(tmp_path)
    assert same(TextEncoder.load(tmp_path), encoder)


def test_encoders_fit_models_that_have_all_their_rows(small):
    large, base = TextEncoder.gpt2("bart.large"), TextEncoder.gpt2("bart.base")
    assert large.fit(50265) is large and base.fit(51201) is base
    assert small.fit(len(small.dictionary) + 7) is small  # padded embeddings
    with pytest.raises(ValueError, match="51201 symbols, .* for 50265: .* bart.base's la"):
        base.fit(50265)
    with pytest.raises(ValueError, match="280 symbols, but the model has embeddings for 60"):
        TextEncoder(small.bpe, Dictionary.from_symbols([str(i) for i in range(280)])).fit(60)
    with pytest.raises(ValueError, match=r"50265 symbols, .* 51201: .* dict.txt of bart.base's"):
        large.fit(51201)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        TextEncoder.load(tmp_path)
    message = str(caught.value)
    assert "\n" not in message and str(tmp_path) in message
    for name in ("dict.txt", "encoder.json + vocab.bpe", "vocab.json + merges.txt", "spiece.model"):
        assert name in message
    with pytest.raises(FileNotFoundError, match="nowhere is not a directory"):
        TextEncoder.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no tokenizer files"):
        TextEncoder.load(write(tmp_path, vocab__json={"a": 0}))  # its merges are not there


VOCABULARY = {"<s>": 0, "<pad>": 1, "</s>": 2, "a": 3, "b": 4, "ab": 5}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vocab__json": "{", "merges__txt": "a b"}, "vocab.json is not JSON"),
        ({"vocab__json": [1], "merges__txt": "a b"}, "vocab.json holds a list, not an object"),
        ({"vocab__json": {"a": "x"}, "merges__txt": "a b"}, "the id of 'a' is 'x', not a whole"),
        ({"vocab__json": VOCABULARY, "merges__txt": "b a"}, "needs 'ba', which is not in the voc"),
        ({"vocab__json": {"a": 0, "b": 1, "ab": 2}, "merges__txt": "a b"}, "has no '<s>'"),
        ({"vocab__json": {**VOCABULARY, "c": 5}, "merges__txt": "a b"}, "id 5, which is taken"),
        ({"dict__txt": "hello 4\nworld 3\n"}, "are not those of GPT-2's BPE, the one in use"),
        (
            {"dict__txt": "7 4\n8 3\n", "encoder__json": {"a": 0}, "vocab__bpe": "#version\n"},
            "are not those of encoder.json + vocab.bpe",
        ),
        ({"dict__txt": "7\n"}, "dict.txt, line 1: '7' is not"),
        ({"tokenizer__json": {"model": {"type": "Nothing"}}}, "tokenizer.json is not of the tok"),
        ({"tokenizer__json": "{"}, "tokenizer.json is not JSON"),
        ({"spiece__model": "nonsense"}, "spiece.model: not a SentencePiece model"),
    ],
)
def test_files_that_are_damaged_or_do_not_belong_together(tmp_path, files, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        TextEncoder.load(write(tmp_path, **files))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8(tmp_path):
    (tmp_path / "vocab.json").write_bytes(b'{"\xff": 0}')
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(ValueError, match="not in UTF-8"):
        TextEncoder.load(tmp_path)


def test_a_bpe_without_a_file_format_cannot_be_saved(tmp_path):
    class Other(GPT2BPE):
        pass

    encoder = TextEncoder.gpt2()
    TextEncoder(Other({"a": "a"}, []), Dictionary()).save(tmp_path)
    encoder.bpe = object()  # type: ignore[assignment]
    with pytest.raises(TypeError, match="a object cannot be saved"):
        encoder.save(tmp_path)
