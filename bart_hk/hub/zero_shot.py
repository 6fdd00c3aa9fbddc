"""Classes that no head was trained for: does the text entail "This example is about LABEL."?

Source: Yin et al. 2019; transformers' `ZeroShotClassificationPipeline`, whose numbers these are.
Shapes: N texts, L labels.
"""

import re
from collections.abc import Sequence

import numpy as np

HYPOTHESIS = "This example is {}."
_UNNAMED = re.compile(r"(LABEL_)?\d+", re.IGNORECASE)  # what transformers calls such classes


def hypotheses(labels: Sequence[str], template: str) -> list[str]:
    """What each label claims of a text.

    Raises:
        ValueError: there are no labels, one is twice, or the template has no place for it.
    """
    if isinstance(labels, str) or not labels:
        raise ValueError(f"labels={labels!r}: give a list of at least one label")
    for label in labels:
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"labels: {label!r} is no name of a class")
        if list(labels).count(label) > 1:
            raise ValueError(f"labels has {label!r} twice")
    try:
        claims = [template.format(label) for label in labels]
    except (IndexError, KeyError, ValueError):
        claims = []
    if not claims or claims[0] == template:
        raise ValueError(
            f"hypothesis_template={template!r} needs one {{}} where the label is put in"
        )
    return claims


def answers(names: Sequence[str] | None, classes: int) -> tuple[int, int]:
    """Which of a head's outputs say yes and no: entailment is the class whose name begins so, or
    the last; contradiction the first, or the last where that is entailment.

    Raises:
        ValueError: the head has one output, or names for its classes and none is entailment.
    """
    if classes < 2:
        raise ValueError("labels=[...] needs a head that was trained to tell entailment")
    found = [i for i, name in enumerate(names or ()) if name.lower().startswith("entail")]
    if names and not found and not all(_UNNAMED.fullmatch(name) for name in names):
        raise ValueError(
            "labels=[...] needs a head that was trained to tell entailment; this one tells "
            f"{', '.join(names[:10])}"
        )
    yes = found[0] if found else classes - 1
    return yes, classes - 1 if yes == 0 else 0


def scores(logits: np.ndarray, yes: int, no: int, multi_label: bool) -> np.ndarray:
    """Probabilities [N, L] from logits [N, L, C].

    One of the labels holds: a softmax over their entailment. Any of them may (`multi_label`, or a
    single label): for each, entailment against contradiction.
    """
    logits = logits.astype(np.float64)
    if multi_label or logits.shape[1] == 1:
        return 1 / (1 + np.exp(logits[..., no] - logits[..., yes]))
    entailed = np.exp(logits[..., yes] - logits[..., yes].max(1, keepdims=True))
    return entailed / entailed.sum(1, keepdims=True)
