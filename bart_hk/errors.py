"""What every room that reads files says of those that it cannot read; and warnings."""

from typing import Any

LFS_POINTER = b"version https://git-lfs"  # what a clone without git-lfs has in place of weights


class CheckpointError(ValueError):
    """A file of a model is damaged, hostile, cut short, or something else than its name says.

    One line: the file, the member or tensor in it, and what is wrong. A file that is not there is a
    FileNotFoundError, and a disk that fails an OSError.
    """


class NothingFoundWarning(UserWarning):
    """A search ended without any hypothesis for an input, so its list of them is empty."""


class CutTextWarning(UserWarning):
    """A text was longer than the model's positions, and was cut to them."""


def shown(value: Any) -> str:
    """`value`, which may come from a hostile file, as one short line of a message."""
    if not isinstance(value, str | bytes | int | float):
        return f"a {type(value).__name__}"
    cut = value[:120] if isinstance(value, str | bytes) else value
    text = cut if isinstance(cut, str) and cut.isprintable() else repr(cut)
    return text if cut == value or value != value else f"{text}..."
