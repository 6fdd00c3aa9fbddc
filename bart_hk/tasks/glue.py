"""GLUE's tasks by name: the layout of their official files, their labels, their metrics.

Source: the archives of gluebenchmark.com; fairseq `examples/roberta/preprocess_GLUE_tasks.sh` (the
columns; QQP's malformed lines are left out; STS-B's scores are divided by 5); Wang et al. 2019,
table 1 (the metrics). AX is diagnostic-full.tsv, whose rows have labels. MNLI's classes are in
bart.large.mnli's order.
"""

from dataclasses import dataclass
from pathlib import Path

from bart_hk.data.readers import DataError
from bart_hk.tasks.files import VALID_NAMES


@dataclass(frozen=True)
class GlueTask:
    """One of them.

    Attributes:
        folder: its name in the benchmark's archive.
        text_columns, label_column: of its files.
        labels: in the order of the head's outputs; none for a regression.
        reports: options of the criterion for its official metrics, beside accuracy.
        header: the columns' names, where the files have no line with them.
        valid: its validation file, first of all.
        also_valid: others, that a model is judged on, too.
        skip_malformed: its files have lines with too few columns, which nobody uses.
        divisor: of its scores.
        trained_by: where it only judges a model, the task that the model is trained on.
    """

    folder: str
    text_columns: tuple[str, ...]
    label_column: str = "label"
    labels: tuple[str, ...] = ("0", "1")
    reports: tuple[str, ...] = ()
    header: tuple[str, ...] | None = None
    valid: str = "dev"
    also_valid: tuple[str, ...] = ()
    skip_malformed: bool = False
    divisor: float = 1.0
    trained_by: str = ""

    @property
    def regression(self) -> bool:
        return not self.labels

    def find(self, data: Path) -> tuple[Path, Path | None]:
        """Training and validation file, in `data` or in the task's folder there.

        Raises:
            DataError: there is no train.tsv.
        """
        if self.trained_by:
            raise DataError(
                f"task.glue={self.folder.lower()} has nothing to train on: train task.glue="
                f"{self.trained_by}, then bart-hk-evaluate MODEL FILE --glue {self.folder.lower()}"
            )
        inside = data / self.folder
        folder = inside if inside.is_dir() else data
        train = folder / "train.tsv"
        if not train.is_file():
            raise DataError(
                f"task.data={data} has neither train.tsv nor {self.folder}/train.tsv; give it "
                "GLUE's folder, or that of the task"
            )
        names = dict.fromkeys((self.valid, *VALID_NAMES))
        paths = (folder / f"{name}.tsv" for name in names)
        return train, next((path for path in paths if path.is_file()), None)

    def beside(self, valid: Path) -> list[Path]:
        """Of `also_valid` those that lie beside its validation file."""
        others = self.also_valid if valid.stem == self.valid else ()
        return [path for path in map(valid.with_stem, others) if path.is_file()]


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = ("contradiction", "neutral", "entailment")

GLUE = {
    "cola": GlueTask(
        "CoLA",
        ("sentence",),
        reports=("report_mcc",),
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": GlueTask("SST-2", ("sentence",)),
    "mrpc": GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", reports=("report_acc_and_f1",)),
    "qqp": GlueTask(
        "QQP",
        ("question1", "question2"),
        "is_duplicate",
        reports=("report_acc_and_f1",),
        skip_malformed=True,
    ),
    "stsb": GlueTask(
        "STS-B", _PAIR, "score", (), reports=("report_pearson_and_spearman",), divisor=5.0
    ),
    "mnli": GlueTask(
        "MNLI", _PAIR, "gold_label", _MNLI, valid="dev_matched", also_valid=("dev_mismatched",)
    ),
    "qnli": GlueTask("QNLI", ("question", "sentence"), labels=_ENTAILMENT),
    "rte": GlueTask("RTE", _PAIR, labels=_ENTAILMENT),
    "wnli": GlueTask("WNLI", _PAIR),
    "ax": GlueTask(
        "AX", ("Premise", "Hypothesis"), "Label", _MNLI, ("report_mcc",), trained_by="mnli"
    ),
}


def glue_task(name: str) -> GlueTask:
    """The task of a name, in any spelling: "sst2", "SST-2".

    Raises:
        DataError: there is none.
    """
    plain = name.lower().replace("-", "").replace("_", "")
    if plain not in GLUE:
        raise DataError(f"task.glue={name} is not one of {', '.join(GLUE)}")
    return GLUE[plain]
