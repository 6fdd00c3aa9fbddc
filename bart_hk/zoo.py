"""Model names to directories."""

from pathlib import Path


def locate(name_or_path: str | Path) -> Path:
    """The model directory that `name_or_path` means.

    Raises:
        FileNotFoundError: there is none; says what was looked for.
        ValueError: it is a file or an address, which cannot be read yet.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(
            f"{path} is a file; give the directory of a model (config.json, model.safetensors). "
            "fairseq's .pt files and archives are not read yet"
        )
    raise FileNotFoundError(
        f"no model {str(name_or_path)!r}: there is no directory {path.absolute()}; give one with "
        "config.json and model.safetensors. Names and addresses are not downloaded yet"
    )
