"""The tasks there are, by name: the only list of them."""

from typing import Any

from bart_hk.tasks import TaskKind, denoising, sentence_prediction, translation

TASKS: dict[str, TaskKind] = {
    kind.config._name: kind for kind in (sentence_prediction.KIND, denoising.KIND, translation.KIND)
}

# By name, too; tasks may share them.
CRITERIA: dict[str, Any] = {
    criterion._name: criterion for kind in TASKS.values() for criterion in kind.criteria
}
