"""Whether the head of a restored model, or of a teacher, is of the kind that the data ask for."""

from collections.abc import Sequence

from bart_hk.checkpoint.model_files import HeadFiles
from bart_hk.data.readers import DataError

_SHOWN = 10  # classes in a message


def described(
    labels: Sequence[str] | None, count: int, regression: bool = False, multi_label: bool = False
) -> str:
    """What a head gives, in words."""
    if regression:
        return "numbers"
    if labels is None:
        return f"{count} classes without names" if count != 1 else "a single score"
    shown = ", ".join(labels[:_SHOWN]) + (f", ... ({len(labels)})" if labels[_SHOWN:] else "")
    return f"{'any of ' if multi_label else ''}the classes {shown}"


def of_head(head: HeadFiles) -> str:
    """`described` of a head."""
    return described(head.labels, head.num_classes, head.regression, head.multi_label)


def misfit(name: str, head: HeadFiles, wanted: str, option: str) -> DataError:
    """The error for a restored head that gives something else than what is `wanted`.

    Args:
        name: the head's.
        option: of the criterion, where another name can be given.
    """
    return DataError(
        f"the restored head {name!r} gives {of_head(head)}, and wanted are {wanted}: name another "
        f"head in criterion.{option}, or have a new one in its place with "
        "checkpoint.reset_heads=true"
    )
