"""Repositories of Hugging Face's hub, through huggingface_hub, in the cache that everybody shares.

That library itself honours its environment: $HF_ENDPOINT, $HF_HOME, $HF_HUB_CACHE, $HF_TOKEN.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
from pathlib import Path

from bart_hk.errors import CheckpointError
from bart_hk.zoo import names
from bart_hk.zoo.cache import NO_SPACE, READ_ONLY

# What we read, and no more: repositories hold the same weights for several frameworks.
_AROUND = [
    "config.json",
    "generation_config.json",
    "bart_hk.json",
    "heads.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
    "dict.txt",
    "dict.source.txt",
    "dict.target.txt",
    "sentencepiece.bpe.model",
    "sentence.bpe.model",
    "sentencepiece.model",
    "spiece.model",
    "tokenizer.model",
]
# The first of these that a repository has.
_WEIGHTS = (
    ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin"],
    ["flax_model.msgpack", "flax_model.msgpack.index.json", "flax_model-*-of-*.msgpack"],
    ["model.pt"],
)
# requests' error of a dropped connection. From version 1 on huggingface_hub has no requests, and
# goes on with the download itself; before, with what has come when it is asked again.
_DROPPED, _TRIES = "ChunkedEncodingError", 5


def snapshot(
    repository: str,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    force_reload: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The folder of a repository's files, downloaded where they are not yet in the cache.

    The arguments and exceptions are those of `bart_hk.zoo.locate`.
    """
    from huggingface_hub import constants

    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    blobs = cache / f"models--{repository.replace('/', '--')}" / "blobs"
    before = {path.name for path in blobs.glob("*")}
    request = _Request(repository, revision, cache, force_reload, local_files_only)
    patterns = _AROUND
    for weights in _WEIGHTS:
        folder = request.ask(patterns + weights)
        if _has(folder, weights):
            _verify(folder, before)
            return folder
        if local_files_only and any(_has(folder, others) for others in _WEIGHTS):
            return folder
        patterns = []  # what is around the weights has come with the first
    others = sorted(path.name for path in folder.iterdir())
    looked = ", ".join(weights[0] for weights in _WEIGHTS)
    raise FileNotFoundError(
        f"{repository} has no weights that can be read: looked for {looked} in {folder}, which "
        f"holds {', '.join(others) or 'nothing'}"
    )


@dataclasses.dataclass
class _Request:
    """What is asked of huggingface_hub, and its errors in one line of ours."""

    repository: str
    revision: str | None
    cache: Path
    force: bool
    local_files_only: bool

    def ask(self, patterns: list[str]) -> Path:
        """The folder in the cache with the files of these patterns."""
        from huggingface_hub import constants, errors, snapshot_download

        repository, hub = self.repository, constants.ENDPOINT
        missing = (
            f"no model {self}: there is no directory {Path(repository).absolute()}, it is not "
            f"whole in the cache {self.cache}"
        )
        by_hand = (
            f"run `hf download {repository} --local-dir FOLDER` where there is a network, bring "
            "FOLDER here and give its path"
        )

        def download() -> Path:
            folder = snapshot_download(
                repository,
                revision=self.revision,
                cache_dir=str(self.cache),
                allow_patterns=patterns,
                force_download=self.force,
                local_files_only=self.local_files_only,
            )
            return Path(folder)

        try:
            for _ in range(_TRIES - 1):
                try:
                    return download()
                except Exception as error:
                    if type(error).__name__ != _DROPPED:
                        raise
            return download()
        except errors.GatedRepoError as error:
            raise PermissionError(
                f"{repository} is gated: accept its conditions at {hub}/{repository} and log in "
                "with `hf auth login`, or set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            near = names.did_you_mean(n for n in names.nearest(repository) if n != repository)
            raise FileNotFoundError(
                f"{missing}, and {hub} has no such repository, or it is private{near}"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise FileNotFoundError(
                f"{repository} at {hub} has no revision {self.revision!r}"
            ) from error
        except errors.LocalEntryNotFoundError as error:
            cause = error.__cause__
            if self.local_files_only or isinstance(cause, errors.OfflineModeIsEnabled):
                raise FileNotFoundError(
                    f"{missing}, and the network is not to be used (local_files_only, or "
                    f"HF_HUB_OFFLINE is set); {by_hand}"
                ) from error
            raise ConnectionError(
                f"{missing}, and {hub} cannot be reached ({_first_line(cause or error)}); {by_hand}"
            ) from error
        except errors.HFValidationError as error:
            raise ValueError(
                f"{repository!r} cannot be a repository: {_first_line(error)}"
            ) from error
        except Exception as error:  # httpx's, the disk's, whatever else another version raises
            number = getattr(error, "errno", None)
            if number in READ_ONLY:
                if not self.local_files_only:
                    with contextlib.suppress(FileNotFoundError):  # whole, only not to be updated
                        return dataclasses.replace(self, local_files_only=True).ask(patterns)
                raise OSError(
                    f"the cache {self.cache} cannot be written ({os.strerror(number)}); name "
                    "another place with cache_dir= or $HF_HUB_CACHE"
                ) from error
            if number in NO_SPACE:
                raise OSError(
                    f"no space in the cache {self.cache} for {repository}; make room, or name "
                    "another place with cache_dir= or $HF_HUB_CACHE"
                ) from error
            raise ConnectionError(
                f"{missing}, and it could not be downloaded from {hub} ({_first_line(error)}); "
                f"{by_hand}"
            ) from error

    def __str__(self) -> str:
        revision = "" if self.revision is None else f" (revision {self.revision})"
        return f"{self.repository!r}{revision}"


def _has(folder: Path, patterns: list[str]) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in patterns)


def _verify(folder: Path, before: set[str]) -> None:
    """Compare what is new with its SHA-256, by which the hub names large files."""
    for path in folder.iterdir():
        stored = path.resolve()
        if stored.name in before or not re.fullmatch("[0-9a-f]{64}", stored.name):
            continue
        with open(stored, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != stored.name:
            stored.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise CheckpointError(
                f"{path}: what was downloaded has the SHA-256 {found}, not {stored.name}; it was "
                "removed, try again"
            )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
