"""Entry points of `torch.hub`; torch is needed for that call only.

bart = torch.hub.load("path/to/this/repository", "bart.large.cnn", source="local")
bart = torch.hub.load("path/to/this/repository", "bart", "DIRECTORY", source="local")

fairseq's names are there as it writes them, and with underscores for whoever imports this file.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bart_hk.hub import BARTHubInterface

dependencies = ["jax", "haiku", "safetensors", "tokenizers", "huggingface_hub", "filelock", "tqdm"]

_SHIPPED = ("bart.mini", "bart.latent")
_ABOUT = {
    "bart.mini": "a small one of this project's own, 4 + 4 layers, 10M parameters",
    "bart.latent": "a Transformer-VAE of short sentences, 2 + 2 layers, 3M parameters",
    "bart.base": "pretrained, 6 + 6 layers, 140M parameters",
    "bart.large": "pretrained, 12 + 12 layers, 400M parameters",
    "bart.large.mnli": 'bart.large fine-tuned on MNLI, with the head "mnli"',
    "bart.large.cnn": "bart.large fine-tuned on CNN/DailyMail, to summarise news",
    "bart.large.xsum": "bart.large fine-tuned on XSum, to summarise in one sentence",
}


def bart(name_or_path: str, *args: Any, **kwargs: Any) -> "BARTHubInterface":
    """Any BART: a name, a directory, an archive, a checkpoint, an address, "owner/name".

    Takes the arguments of `bart_hk.load`, such as dtype="bfloat16" or device="cpu", and returns its
    BARTHubInterface: encode, decode, extract_features, predict, classify, fill_mask, sample,
    translate, generate, score.
    """
    # torch.hub loads this file by its path, beside the package that belongs to it.
    import bart_hk

    return bart_hk.load(name_or_path, *args, **kwargs)


def _entry(name: str, about: str) -> Any:
    def entry(*args: Any, **kwargs: Any) -> "BARTHubInterface":
        return bart(name, *args, **kwargs)

    entry.__name__ = entry.__qualname__ = name.replace(".", "_")
    where = (
        "It travels in the package, and nothing is downloaded. Takes the arguments of\n"
        '    `bart_hk.load`, such as dtype="bfloat16" or device="cpu".'
        if name in _SHIPPED
        else "(Lewis et al. 2019) fairseq's archive is downloaded once, into the cache of\n"
        '    `bart_hk.load`, whose arguments it takes: dtype="bfloat16", device="cpu",\n'
        "    cache_dir=..., force_reload=True, local_files_only=True."
    )
    entry.__doc__ = f"""{name}: {about}.

    {where}
    Returns a BARTHubInterface.
    """
    return entry


for _name, _about in _ABOUT.items():
    globals()[_name] = globals()[_name.replace(".", "_")] = _entry(_name, _about)
