"""Names, addresses and archives to files: where a model is, fetched and unpacked if need be."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bart_hk.zoo import cache, names

if TYPE_CHECKING:
    from bart_hk.text import TextEncoder

__all__ = ["load_tokenizer", "locate"]


def load_tokenizer(name_or_path: str | os.PathLike) -> "TextEncoder":
    """A tokenizer alone: that of a model which `locate` finds; nothing is downloaded for
    "bart.base" and "bart.large", whose files travel in the package.

    Raises:
        As `locate` and `TextEncoder.load`.
    """
    # Imported here so that naming a folder stays cheap; and so are the others below.
    from bart_hk.text import TextEncoder
    from bart_hk.text.gpt2_bpe import GPT2_SIZES

    name = os.fspath(name_or_path)
    if name in GPT2_SIZES and not Path(name).exists():
        return TextEncoder.gpt2(name)
    return TextEncoder.load(locate(name))


def locate(
    name_or_path: str | os.PathLike,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    force_reload: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The folder of a model, or the single file that it is.

    Args:
        name_or_path: what to find, in this order:
            a folder, or a checkpoint (`.pt`, `.bin`, `.safetensors`), which are given back;
            an archive of a folder (`.tar.gz`, `.tar.bz2`, `.tar`, `.zip`), unpacked into the cache;
            "bart.mini" or "bart.latent" (or "bart_mini", ...), which travel in the package;
            one of `names.ARCHIVES`, such as "bart.large.cnn" (or "bart_large_cnn");
            an address (http, https) of an archive or a checkpoint; `#sha256=...` at its end is
            compared with what was downloaded;
            "owner/name" of a repository of Hugging Face's hub.
        revision: of a repository: a branch, a tag or a commit.
        cache_dir: where downloads and unpacked archives are kept. By default repositories are in
            Hugging Face's own cache ($HF_HUB_CACHE, $HF_HOME) and everything else is in
            $BART_HK_CACHE, $PYTORCH_FAIRSEQ_CACHE or `bart_hk` in torch's cache ($TORCH_HOME).
        force_reload: download or unpack again what the cache has.
        local_files_only: use only what is here; so does $HF_HUB_OFFLINE.

    Raises:
        FileNotFoundError: there is no such model, or not here; says what was looked for, where,
            and how to bring it by hand.
        CheckpointError: an archive is damaged or hostile; what was unpacked of it is removed.
        ConnectionError: a download failed.
        OSError: no space for the cache, or it cannot be written.
        ValueError: `revision` of something that has none.
    """
    text, name = os.fspath(name_or_path), None
    path = Path(text.removeprefix("file://")).expanduser()
    if names.is_url(text):
        source = "url"
    elif path.is_dir():
        source = "folder"
    elif path.exists():
        source = "file"
    elif (name := names.published_name(text)) is not None:
        source = "shipped" if name in names.SHIPPED else "archive"
    elif names.is_repository(text):
        source = "repository"
    else:
        raise FileNotFoundError(_unknown(text, path))
    if revision is not None and source != "repository":
        raise ValueError(
            f"revision={revision!r} is for repositories of Hugging Face's hub; {text} is none"
        )
    if source == "folder":
        return path
    if source == "shipped":
        return Path(__file__).parent / "shipped" / str(name)
    if source == "repository":
        from bart_hk.zoo.repositories import snapshot

        return snapshot(
            text,
            revision=revision,
            cache_dir=cache_dir,
            force_reload=force_reload,
            local_files_only=local_files_only or cache.offline(),
        )
    from bart_hk.zoo import fetched

    folder = cache.cache_folder(cache_dir)
    if source == "file":
        return fetched.local_file(path, folder, force_reload=force_reload)
    return fetched.address(
        text if name is None else names.ARCHIVES[name],
        folder,
        name=name,
        force_reload=force_reload,
        local_files_only=local_files_only or cache.offline(),
    )


def _unknown(text: str, path: Path) -> str:
    here = path.parent
    try:
        entries = [entry.name for entry in here.iterdir()] if here != Path() else []
    except OSError:
        entries = []
    siblings = [str(here / name) for name in names.nearest(path.name, entries)]
    return (
        f"no model {text!r}: there is no directory or file {path.absolute()}, and it is neither a "
        f"name ({', '.join((*names.SHIPPED, *names.ARCHIVES))}), nor owner/name of a repository, "
        f"nor an address{names.did_you_mean(siblings or names.nearest(text))}"
    )
