"""The hub: `load`, `BARTModel.from_pretrained`, and what they give."""

from pathlib import Path
from typing import Any

from bart_hk import zoo
from bart_hk.checkpoint.huggingface import read_model
from bart_hk.hub.arrays import collate_tokens
from bart_hk.hub.interface import BARTHubInterface
from bart_hk.hub.loaded import resolve_device, resolve_dtype
from bart_hk.text import TextEncoder

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
    **overrides: Any,
) -> BARTHubInterface:
    """Loads a model from its directory (`config.json`, `model.safetensors`, tokenizer files).

    Args:
        name_or_path: the directory; ours and Hugging Face's are alike.
        checkpoint_file: fairseq's argument; only its default is taken, since `.pt` files are not
            read yet.
        data_name_or_path: where the tokenizer's files are; relative to the model if it begins with
            a dot.
        dtype: of the parameters and of the computation: "float32", "bfloat16" or "float16".
        device: "cpu", "gpu", "gpu:1", ... or a `jax.Device`; jax's default if None.
        max_tokens: bound on the padded source tokens of a batch.
        batch_size: bound on the sentences of a batch that is generated from.
        **overrides: fields of `BARTConfig` that do not change a shape, such as `dropout=0.3`.

    Raises:
        FileNotFoundError: no such model, or its tokenizer's files are missing.
        ValueError: a file is damaged, or weights, config and vocabulary do not fit.
        TypeError: an override is not a field of `BARTConfig`.
    """
    if checkpoint_file != "model.pt":
        raise ValueError(
            f"checkpoint_file={checkpoint_file!r}: fairseq's .pt files are not read yet; give a "
            "directory with config.json and model.safetensors"
        )
    device = resolve_device(device)  # a misspelt device must not cost a load
    dtype = resolve_dtype(dtype)
    directory = zoo.locate(name_or_path)
    model = read_model(directory)
    config = model.config.replace(**overrides)
    data = str(data_name_or_path)
    text = TextEncoder.load(directory / data if data.startswith(".") else data)
    text = text.fit(config.vocab_size)
    if config.unk_token_id is None:  # config.json has no place for it
        config = config.replace(unk_token_id=text.dictionary.unk_index)
    return BARTHubInterface(
        config,
        model.params,
        text,
        model.heads,
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
