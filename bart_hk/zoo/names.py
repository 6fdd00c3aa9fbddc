"""Names of published models, and what is near to a name that nobody knows."""

import difflib
import re
from collections.abc import Iterable

# Models that travel in the package, in bart_hk/zoo/shipped.
SHIPPED = ("bart.mini", "bart.latent")

# fairseq's own archives (fairseq/models/bart/model.py, `hub_models`), over https.
ARCHIVES = {
    name: f"https://dl.fbaipublicfiles.com/fairseq/models/{name}.tar.gz"
    for name in ("bart.base", "bart.large", "bart.large.mnli", "bart.large.cnn", "bart.large.xsum")
}

# Only for suggestions: any other repository loads as well.
REPOSITORIES = (
    "facebook/bart-base",
    "facebook/bart-large",
    "facebook/bart-large-cnn",
    "facebook/bart-large-mnli",
    "facebook/bart-large-xsum",
    "facebook/mbart-large-50",
    "facebook/mbart-large-50-many-to-many-mmt",
    "facebook/mbart-large-cc25",
    "facebook/mbart-large-en-ro",
    "moussaKam/barthez",
    "moussaKam/mbarthez",
    "sshleifer/distilbart-cnn-12-6",
    "sshleifer/distilbart-cnn-6-6",
    "sshleifer/distilbart-xsum-12-1",
    "sshleifer/distilbart-xsum-12-6",
    "valhalla/distilbart-mnli-12-3",
)

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_URL = re.compile(r"(https?)://", re.IGNORECASE)
_FILE_ENDING = re.compile(
    r".*\.(bin|bz2|ckpt|dat|gz|msgpack|pt|pth|safetensors|tar|tgz|zip)", re.IGNORECASE
)


def published_name(text: str) -> str | None:
    """The name that `text` stands for, "bart.large.cnn" or "bart_large_cnn"; None if it is none."""
    name = text.replace("_", ".")
    return name if name in SHIPPED or name in ARCHIVES else None


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def is_repository(text: str) -> bool:
    """Whether `text` could be "owner/name" of Hugging Face's hub, rather than a path."""
    return _REPOSITORY.fullmatch(text) is not None and not _FILE_ENDING.fullmatch(text)


def nearest(text: str, known: Iterable[str] = (*SHIPPED, *ARCHIVES, *REPOSITORIES)) -> list[str]:
    """Up to three of `known` that somebody who wrote `text` may have meant, the nearest first.

    An owner is optional and the separators are alike: "bart_large-cnn" is near to "bart.large.cnn"
    and to "facebook/bart-large-cnn".
    """

    def plain(name: str) -> str:
        return re.sub(r"[-_. ]+", "-", name.lower())

    spellings: dict[str, list[str]] = {}
    for name in known:
        for spelling in {plain(name), plain(name.rpartition("/")[2])}:
            spellings.setdefault(spelling, []).append(name)
    found: list[str] = []
    for wanted in (plain(text), plain(text.rpartition("/")[2])):
        for spelling in difflib.get_close_matches(wanted, spellings, n=3, cutoff=0.75):
            found += [name for name in spellings[spelling] if name not in found]
    return found[:3]


def did_you_mean(names: Iterable[str]) -> str:
    """ "; did you mean a, or b?", or nothing."""
    listed = ", or ".join(names)
    return f"; did you mean {listed}?" if listed else ""
