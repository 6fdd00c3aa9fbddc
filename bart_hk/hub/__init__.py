"""The hub: `load`, `BARTModel.from_pretrained`, and what they give."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bart_hk.hub.arrays import collate_tokens
from bart_hk.hub.interface import BARTHubInterface
from bart_hk.hub.loaded import resolve_device, resolve_dtype
from bart_hk.hub.opening import open_model, taking

__all__ = ["BARTHubInterface", "BARTModel", "collate_tokens", "load"]


def load(
    name_or_path: str | Path,
    checkpoint_file: str = "model.pt",
    data_name_or_path: str | Path = ".",
    *,
    dtype: Any = "float32",
    device: Any = None,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    gpt2_encoder_json: str | Path | None = None,
    gpt2_vocab_bpe: str | Path | None = None,
    sentencepiece_model: str | Path | None = None,
    max_positions: int | None = None,
    new_symbols: Sequence[str] = (),
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    force_reload: bool = False,
    local_files_only: bool = False,
    **overrides: Any,
) -> BARTHubInterface:
    """Loads a model: fairseq's, Hugging Face's or ours, from here or from the network.

    Nothing in a file is ever run, and neither torch nor fairseq is needed.

    Args:
        name_or_path: what to load:
            a directory, with `config.json` and its weights, or with a fairseq checkpoint and its
            `dict.txt`; a checkpoint in it; or an archive of one;
            "bart.base", "bart.large", "bart.large.mnli", "bart.large.cnn", "bart.large.xsum";
            the "owner/name" of a repository of Hugging Face's hub; or an address.
            Several that are here, "one:two", are an ensemble, which generates and scores by the
            mean of their probabilities (everything else is the first one's).
        checkpoint_file: the fairseq checkpoint in the directory; or several, "a.pt:b.pt", for an
            ensemble.
        data_name_or_path: where the tokenizer's files are, such as a data folder of fairseq's with
            `input0/dict.txt` and `label/dict.txt`; relative to the model if it begins with a dot.
        gpt2_encoder_json, gpt2_vocab_bpe, sentencepiece_model: files of the tokenizer, where they
            are not those beside the model (or, for GPT-2's BPE, in this package): the first two, or
            the third.
        dtype: of the parameters and of the computation: "float32", "bfloat16" or "float16".
        device: "cpu", "gpu", "gpu:1", ... or a `jax.Device`; jax's default if None.
        max_tokens: bound on the padded source tokens of a batch.
        batch_size: bound on the sentences of a batch that is generated from.
        max_positions: longer position tables; see `checkpoint.resize.extend_positions`.
        new_symbols: names of symbols to add to the vocabulary, before `<mask>`; their embeddings
            are drawn at random, the same ones every time.
        revision, cache_dir, force_reload, local_files_only: see `bart_hk.zoo.locate`.
        **overrides: fields of `BARTConfig` that do not change a shape, such as `dropout=0.3`.

    Raises:
        FileNotFoundError: no such model, or its tokenizer's files are missing.
        ConnectionError: it could not be downloaded.
        ValueError: a file is damaged (CheckpointError), or weights, config and vocabulary do not
            fit.
        TypeError: an override is not a field of `BARTConfig`.
    """
    device = resolve_device(device)  # a misspelt device must not cost a load
    dtype = resolve_dtype(dtype)
    pair = (gpt2_encoder_json, gpt2_vocab_bpe)
    both = [file for file in pair if file is not None]
    if len(both) == 1 or (both and sentencepiece_model is not None):
        raise ValueError(
            f"gpt2_encoder_json={pair[0]}, gpt2_vocab_bpe={pair[1]}, "
            f"sentencepiece_model={sentencepiece_model}: give the first two, or the third alone"
        )
    members, text = open_model(
        name_or_path,
        checkpoint_file,
        data_name_or_path,
        bpe_files=both if sentencepiece_model is None else [sentencepiece_model],
        max_positions=max_positions,
        new_symbols=new_symbols,
        overrides=overrides,
        place=taking(dtype, device),
        revision=revision,
        cache_dir=cache_dir,
        force_reload=force_reload,
        local_files_only=local_files_only,
    )
    model, *others = members
    last, eos = model.config.forced_eos_token_id, model.config.eos_token_id
    if last not in (None, eos):
        warnings.warn(
            f"{name_or_path} asks for forced_eos_token_id={last} at the end of a text that is as "
            f"long as it may be; it ends with </s> ({eos}) here, as every other text does",
            stacklevel=2,
        )
    return BARTHubInterface(
        model.config,
        model.params,
        text,
        model.heads,
        others=[(other.config, other.params) for other in others],
        extras=model.extras,
        dtype=dtype,
        device=device,
        max_tokens=max_tokens,
        batch_size=batch_size,
    )


class BARTModel:
    """fairseq's name for what loads a BART."""

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str | Path,
        checkpoint_file: str = "model.pt",
        data_name_or_path: str | Path = ".",
        bpe: str = "gpt2",
        sample_break_mode: str = "eos",
        **kwargs: Any,
    ) -> BARTHubInterface:
        """`load`, in fairseq's words.

        `bpe` and `sample_break_mode` are there for fairseq's callers: the tokenizer is the one
        whose files are found, and every input is a block of its own.
        """
        return load(model_name_or_path, checkpoint_file, data_name_or_path, **kwargs)
