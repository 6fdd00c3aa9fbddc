"""The tasks there are, by name: the only list of them."""

from typing import Any

from bart_hk.tasks import (
    TaskKind,
    autoencoding,
    denoising,
    language_modeling,
    question_answering,
    rot13,
    sentence_prediction,
    sentence_ranking,
    token_classification,
    translation,
    translation_from_pretrained_bart,
    translation_with_source_encoder,
)

_MODULES: tuple[Any, ...] = (
    sentence_prediction,
    sentence_ranking,
    token_classification,
    question_answering,
    denoising,
    language_modeling,
    autoencoding,
    translation,
    translation_from_pretrained_bart,
    rot13,
    translation_with_source_encoder,
)
TASKS: dict[str, TaskKind] = {module.KIND.config._name: module.KIND for module in _MODULES}

# By name, too; tasks may share them.
CRITERIA: dict[str, Any] = {
    criterion._name: criterion for kind in TASKS.values() for criterion in kind.criteria
}
