"""Entry points of `torch.hub`; torch is needed for that call only.

bart = torch.hub.load("path/to/this/repository", "bart", "DIRECTORY", source="local")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bart_hk.hub import BARTHubInterface

dependencies = ["jax", "haiku", "safetensors", "tokenizers"]


def bart(name_or_path: str, *args: Any, **kwargs: Any) -> "BARTHubInterface":
    """A BART from its directory (config.json, model.safetensors, tokenizer files).

    Takes the arguments of `bart_hk.load`, such as dtype="bfloat16" or device="cpu", and returns its
    BARTHubInterface: encode, decode, extract_features, predict, classify, fill_mask, sample,
    translate, generate, score.
    """
    # torch.hub loads this file by its path, beside the package that belongs to it.
    import bart_hk

    return bart_hk.load(name_or_path, *args, **kwargs)
