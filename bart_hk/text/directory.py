"""The tokenizer files of a model's directory: which there are, which win, and what is written."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from bart_hk.text import fairseq_folder
from bart_hk.text.dictionary import Dictionary, token_ids
from bart_hk.text.gpt2_bpe import (
    GPT2BPE,
    Merges,
    gpt2_bpe,
    gpt2_merges,
    gpt2_symbols,
    read_merges,
)
from bart_hk.text.sentencepiece import (
    FAIRSEQ_IDS,
    OWN_IDS,
    PLBART,
    PLBART_LANGUAGES,
    SHIFTED_LAYOUTS,
    SentencePieceBPE,
)
from bart_hk.text.tokenizer_json import FAST_CLASS, TokenizerJSON

_DICTIONARIES = ("dict.txt", "dict.source.txt")
_MODELS = (
    "sentencepiece.bpe.model",
    "sentence.bpe.model",
    "sentencepiece.model",
    "spiece.model",
    "tokenizer.model",
)
# Vocabulary and merges, fairseq's names and Hugging Face's.
_PAIRS = (
    ("encoder.json", "vocab.bpe"),
    ("encoder.json", "merges.txt"),
    ("vocab.json", "merges.txt"),
)
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_FAST = "tokenizer.json"
_ALL = {*_DICTIONARIES, *_MODELS, *_SETTINGS, *(name for pair in _PAIRS for name in pair), _FAST}

_SPECIALS = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}


class Tokenizer(NamedTuple):
    """What a `TextEncoder` is made of, under its names."""

    bpe: Any  # one of the three that are imported here
    dictionary: Dictionary
    mask: str = "<mask>"
    tokenizer_class: str = "BartTokenizer"


def load(
    directory: str | PathLike,
    languages: Sequence[str] | None = None,
    bpe_directory: str | PathLike | None = None,
    bpe_files: Sequence[str | PathLike] = (),
) -> Tokenizer:
    """What the files say. A fairseq `dict.txt` wins, then SentencePiece, then byte-level BPE.

    Arguments and errors are those of `TextEncoder.load`.
    """
    path = Path(directory)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a directory, so it holds no tokenizer files")
    dictionary_file = fairseq_folder.find_dictionary(path)
    if dictionary_file is None and languages is not None:
        raise fairseq_folder.missing_dictionary(path)
    model_file, pair = _given(bpe_files) if bpe_files else _bpe_files(path)
    if model_file is None and pair is None and bpe_directory is not None:
        if dictionary_file is not None:
            model_file, pair = _bpe_files(Path(bpe_directory))
    try:
        if dictionary_file is not None:
            return _load_fairseq(path, dictionary_file, model_file, pair, languages or ())
        layout = _tokenizer_class(path)
        fast = (path / _FAST).is_file()
        if model_file is not None and not (fast and layout not in (*SHIFTED_LAYOUTS, OWN_IDS)):
            return _load_pieces(path, model_file, layout)
        if pair is not None:
            vocabulary = _read_vocabulary(pair[0])
            merges = read_merges(pair[1].read_text(encoding="utf-8"))
            prefix = bool(_read_json(path / "tokenizer_config.json").get("add_prefix_space", False))
            return _byte_level(path, vocabulary, merges, prefix)
        if fast:
            return _load_tokenizer_json(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"a tokenizer file in {path} is not in UTF-8: {error}") from None
    pairs = ", ".join(" + ".join(pair) for pair in _PAIRS)
    raise FileNotFoundError(
        f"no tokenizer files in {path}: looked for {', '.join(_DICTIONARIES)}, input0/dict.txt; "
        f"{', '.join(_MODELS)}; {pairs}; {_FAST}"
    )


def _bpe_files(path: Path) -> tuple[Path | None, tuple[Path, Path] | None]:
    """The SentencePiece model of a folder, and its vocabulary and merges."""
    pairs = ((path / vocabulary, path / merges) for vocabulary, merges in _PAIRS)
    found = (pair for pair in pairs if all(file.is_file() for file in pair))
    return _first(path, _MODELS), next(found, None)


def _given(files: Sequence[str | PathLike]) -> tuple[Path | None, tuple[Path, Path] | None]:
    """As `_bpe_files`, of files that the caller names."""
    paths = [Path(file) for file in files]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"the tokenizer's file {path} is not there")
    return (paths[0], None) if len(paths) == 1 else (None, (paths[0], paths[1]))


def _load_fairseq(
    path: Path,
    dictionary_file: Path,
    model_file: Path | None,
    pair: tuple[Path, Path] | None,
    languages: Sequence[str],
) -> Tokenizer:
    settings = _read_json(path / "tokenizer_config.json")
    # fairseq's tasks add <mask>; a model without it says so in the settings that `save` writes.
    has_mask = settings.get("mask_token", "<mask>") is not None
    dictionary = fairseq_folder.load_dictionary(dictionary_file, languages, has_mask)
    bpe: GPT2BPE | SentencePieceBPE
    if model_file is not None:
        bpe, files = SentencePieceBPE(model_file), model_file.name
    elif pair is not None:
        vocabulary = _read_vocabulary(pair[0])
        merges = read_merges(pair[1].read_text(encoding="utf-8"))
        symbols = {token: str(index) for token, index in vocabulary.items()}
        # Most often these are GPT-2's own files; a vocab.json may be Hugging Face's of the same
        # model, whose ids are those of the dictionary.
        decimals = {gpt2_symbols().get(token, token): i for token, i in vocabulary.items()}
        listed = all(dictionary.indices.get(symbol, i) == i for symbol, i in decimals.items())
        shipped = merges == list(gpt2_merges()) and (listed or symbols == gpt2_symbols())
        bpe = gpt2_bpe() if shipped else GPT2BPE(symbols, merges)
        files = f"{pair[0].name} + {pair[1].name}"
    else:
        bpe, files = gpt2_bpe(), "GPT-2's BPE, the one in use where there are no BPE files"
    known = set(bpe.symbols)
    words = [s for s in dictionary.symbols[4:] if not s.startswith(("madeupword", "<", "["))]
    if 2 * sum(word in known for word in words) < len(words):
        raise ValueError(
            f"the symbols of {dictionary_file} are not those of {files}: put the BPE files or the "
            f"SentencePiece model beside it that it was made with"
        )
    layout = "BartTokenizer" if model_file is None else FAIRSEQ_IDS
    about = settings.get("fairseq")
    if not isinstance(about, dict):
        return Tokenizer(bpe, dictionary, tokenizer_class=layout)
    bpe, dictionary = fairseq_folder.restore(about, settings, bpe, dictionary)
    mask, layout = settings.get("mask_token"), settings.get("tokenizer_class", layout)
    return Tokenizer(bpe, dictionary, mask if isinstance(mask, str) else "<mask>", layout)


def _load_pieces(path: Path, model_file: Path, layout: str) -> Tokenizer:
    bpe = SentencePieceBPE(model_file)
    if layout == FAIRSEQ_IDS:
        raise ValueError(
            f"{path} has no dict.txt, which says the ids of {model_file.name}'s symbols; copy it "
            "there again"
        )
    languages = _plbart_languages(path) if layout == PLBART else None
    dictionary = bpe.dictionary(layout, languages)
    if layout == OWN_IDS:
        added = _added_tokens(path, dictionary.indices)
        words = {name: getattr(dictionary, f"{name}_word") for name in ("bos", "pad", "eos", "unk")}
        dictionary = Dictionary.from_symbols(token_ids(dictionary.indices | added), **words)
    return Tokenizer(bpe, dictionary, _special_words(path)["mask"], layout)


def _plbart_languages(path: Path) -> Sequence[str]:
    """The languages that a PLBart's tokenizer has symbols for."""
    kind = _read_json(path / "tokenizer_config.json").get("language_codes", "base")
    if kind not in PLBART_LANGUAGES:
        raise ValueError(
            f"{path / 'tokenizer_config.json'}: language_codes is {kind!r}; a PLBart has "
            + " or ".join(map(repr, PLBART_LANGUAGES))
        )
    return PLBART_LANGUAGES[kind]


def _byte_level(
    path: Path, vocabulary: dict[str, int], merges: Merges, add_prefix_space: bool
) -> Tokenizer:
    added = _added_tokens(path, vocabulary)
    vocabulary = vocabulary | added
    tokens = token_ids(vocabulary)
    words = _special_words(path)
    mask = words.pop("mask")
    missing = [words[name] for name in ("bos", "pad", "eos") if words[name] not in vocabulary]
    if missing:
        raise ValueError(
            f"the vocabulary in {path} has no {missing[0]!r}; name its special tokens in "
            f"tokenizer_config.json, or add the dict.txt that belongs to it"
        )
    # Over GPT-2's own merges the symbols are fairseq's, as if the model had come from there.
    specials = [_SPECIALS[name] for name in ("bos", "pad", "eos", "unk")]
    if tokens[:4] == specials and not add_prefix_space and list(merges) == list(gpt2_merges()):
        decimals = [gpt2_symbols().get(token, token) for token in tokens]
        return Tokenizer(gpt2_bpe(), Dictionary.from_symbols(decimals), mask)
    outside = {*words.values(), mask, *added}
    symbols = {token: token for token in tokens if token in vocabulary and token not in outside}
    bpe = GPT2BPE(symbols, merges, add_prefix_space=add_prefix_space)
    return Tokenizer(bpe, Dictionary.from_symbols(tokens, **words), mask)


def _load_tokenizer_json(path: Path) -> Tokenizer:
    description = _read_json(path / _FAST)
    model, steps = description.get("model") or {}, description.get("pre_tokenizer") or {}
    added = {token["content"]: token["id"] for token in description.get("added_tokens") or []}
    byte_level = steps.get("type") == "ByteLevel" and steps.get("use_regex", True)
    plain = not description.get("normalizer") and not model.get("continuing_subword_prefix")
    if model.get("type", "BPE") == "BPE" and byte_level and plain:
        pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
        merges = read_merges("\n".join(pairs))
        return _byte_level(path, model["vocab"] | added, merges, steps["add_prefix_space"])
    bpe = TokenizerJSON((path / _FAST).read_text(encoding="utf-8"))
    vocabulary = bpe.vocabulary | added
    vocabulary |= _added_tokens(path, vocabulary)
    words = _special_words(path)
    mask = words.pop("mask")
    dictionary = Dictionary.from_symbols(token_ids(vocabulary), **words)
    return Tokenizer(bpe, dictionary, mask, FAST_CLASS)


def save(tokenizer: Tokenizer, directory: str | PathLike, model_max_length: int | None) -> None:
    """Writes the files. Those of another tokenizer are removed: `load` could prefer them."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    bpe, dictionary, _, tokenizer_class = tokenizer
    files: dict[str, str | bytes] = {}
    settings = _settings(tokenizer)
    if model_max_length is not None:
        settings["model_max_length"] = model_max_length
    fairseq = False
    if isinstance(bpe, GPT2BPE):
        # A token that the dictionary lacks has the id of <unk>, which <unk> itself, later, keeps.
        # (transformers' fast class, unlike its slow one, then merges wrongly.)
        vocabulary = {t: dictionary.index(s) for t, s in bpe.tokens.items() if s not in dictionary}
        vocabulary |= {bpe.token_of.get(s, s): i for s, i in dictionary.indices.items()}
        files["vocab.json"] = _json_text(vocabulary)
        lines = "".join(f"{first} {second}\n" for first, second in bpe.merges)
        files["merges.txt"] = "#version: 0.2\n" + lines
        fairseq = any(token != symbol for token, symbol in bpe.tokens.items())
        if fairseq:
            files["encoder.json"] = _json_text({t: int(s) for t, s in bpe.tokens.items()})
    elif isinstance(bpe, SentencePieceBPE):
        files[_MODELS[0]] = bpe.model
        fairseq = tokenizer_class == FAIRSEQ_IDS
        if tokenizer_class == OWN_IDS:
            extra = dictionary.symbols[len(bpe.symbols) :]
            settings["added_tokens_decoder"] = {
                str(index): {"content": symbol, "special": True}
                | dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
                for index, symbol in enumerate(extra, start=len(bpe.symbols))
            }
    elif isinstance(bpe, TokenizerJSON):
        files[_FAST] = bpe.content
    else:
        raise TypeError(f"a {type(bpe).__name__} cannot be saved: there is no file format for it")
    files["tokenizer_config.json"] = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    for name, content in files.items():
        data = content if isinstance(content, bytes) else content.encode("utf-8")
        (path / name).write_bytes(data)
    if fairseq:
        dictionary.save(path / _DICTIONARIES[0])
        files[_DICTIONARIES[0]] = ""
    for name in _ALL - files.keys():
        (path / name).unlink(missing_ok=True)


def save_fairseq(tokenizer: Tokenizer, directory: Path, rows: int) -> fairseq_folder.Saved:
    """Writes the files as fairseq reads them; arguments and errors are those of `TextEncoder`'s."""
    bpe, dictionary, mask, _ = tokenizer
    settings = _settings(tokenizer)
    return fairseq_folder.save_fairseq(directory, bpe, dictionary, mask, settings, rows)


def _settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """What `tokenizer_config.json` says of every tokenizer."""
    bpe, dictionary, mask, tokenizer_class = tokenizer
    settings: dict[str, Any] = {"tokenizer_class": tokenizer_class}
    words = {name: getattr(dictionary, f"{name}_word") for name in ("bos", "pad", "eos", "unk")}
    words |= {"cls": words["bos"], "sep": words["eos"], "mask": mask}
    for name, word in words.items():
        settings[f"{name}_token"] = word if word in dictionary else None
    if isinstance(bpe, GPT2BPE):
        settings["add_prefix_space"] = bpe.add_prefix_space
    if tokenizer_class == PLBART:
        every = all(code in dictionary for code in PLBART_LANGUAGES["multi"])
        settings["language_codes"] = "multi" if every else "base"
    return settings


def _first(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((path / name for name in names if (path / name).is_file()), None)


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no such file."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not an object")
    return content


def _read_vocabulary(file: Path) -> dict[str, int]:
    vocabulary = _read_json(file)
    for token, index in vocabulary.items():
        if type(index) is not int:
            raise ValueError(f"{file}: the id of {token!r} is {index!r}, not a whole number")
    return vocabulary


def _json_text(vocabulary: dict[str, int]) -> str:
    return json.dumps(vocabulary, ensure_ascii=False, separators=(",", ":"))


def _tokenizer_class(path: Path) -> str:
    """The transformers class of a directory without a fairseq dictionary, less its "Fast"."""
    config = _read_json(path / "config.json")
    named = _read_json(path / "tokenizer_config.json").get("tokenizer_class")
    named = named or config.get("tokenizer_class")
    if named is None:
        classes = {"mbart": "MBartTokenizer", "plbart": PLBART}
        return classes.get(str(config.get("model_type")), OWN_IDS)
    return str(named).removesuffix("Fast")


def _special_words(path: Path) -> dict[str, str]:
    """The special symbols under the names of `_SPECIALS`, as the settings of the directory say."""
    words = dict(_SPECIALS)
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        settings = _read_json(path / file)
        for name in words:
            word = settings.get(f"{name}_token")
            if isinstance(word, dict):
                word = word.get("content")
            if isinstance(word, str):
                words[name] = word
    return words


def _added_tokens(path: Path, vocabulary: dict[str, int]) -> dict[str, int]:
    """Tokens that were added to a vocabulary later, with their ids."""
    added = dict(_read_json(path / "added_tokens.json"))
    decoder = _read_json(path / "tokenizer_config.json").get("added_tokens_decoder") or {}
    added |= {token["content"]: int(index) for index, token in decoder.items()}
    return {token: index for token, index in added.items() if token not in vocabulary}
