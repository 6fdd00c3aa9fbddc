"""`bart-hk-train`: trains a model as its Hydra configuration says; see `conf/config.yaml`.

    bart-hk-train task.train=train.tsv task.valid=dev.tsv checkpoint.restore_file=DIR \\
        checkpoint.save_dir=OUT

The same command again goes on where OUT stands. OUT is a model, and OUT/evaluation-dev what
`bart-hk-evaluate` says of it (common.evaluate). `--multirun common.seed=1,2,3` makes OUT/0, OUT/1
and OUT/2; where one of them fails the others are made all the same. What is wrong is said in one
line, with exit code 2 if it is the command's or its data's fault and 1 if the run failed;
HYDRA_FULL_ERROR=1 shows the traceback instead.
"""

import dataclasses
import importlib.util
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bart_hk.cli.evaluate import check_packages, evaluate_run
from bart_hk.data.workers import WorkerError
from bart_hk.tasks.kinds import TASKS
from bart_hk.training.config import GROUPS, TrainConfig, complete, explain, unknown_key
from bart_hk.training.loop import train

_log = logging.getLogger(__name__)

_FULL_ERROR = "HYDRA_FULL_ERROR"
_SAVE_DIR = "checkpoint.save_dir"
_TRACEBACKS = os.environ.get(_FULL_ERROR) == "1"
_failed: list[int] = []  # the exit codes of a sweep's runs that did


# The installed `bart_hk.conf`, or the checkout's `conf` where the package is not installed.
_INSTALLED = importlib.util.find_spec("bart_hk.conf")
_CONF = Path(_INSTALLED.origin or "").parent if _INSTALLED else Path(__file__).parents[2] / "conf"


def register() -> None:
    """Tells Hydra the typed nodes behind the groups' names."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    for group, options in GROUPS.items():
        for name, node in options.items():
            store.store(group=group, name=name, node=_open(node))
    for name, kind in TASKS.items():  # a task's name stands for the first of its criteria
        store.store(group="criterion", name=name, node=kind.criteria[0])


def _open(node: Any) -> DictConfig:
    """A node whose mappings take any key from the command line, as from a file: task.weights.a=2.

    Hydra closes the whole configuration to new keys; a part's own flag goes before that.
    """
    config = OmegaConf.structured(node)
    for field in dataclasses.fields(node):
        if isinstance(getattr(node, field.name), dict):
            OmegaConf.set_struct(config[field.name], False)
    return config


@hydra.main(version_base="1.3", config_path=str(_CONF), config_name="config")
def _run(config: DictConfig) -> None:
    logging.getLogger("jax").setLevel(logging.WARNING)  # Hydra's INFO is for this package
    config = cast(DictConfig, OmegaConf.create(OmegaConf.to_container(config, resolve=True)))
    one_of_many = HydraConfig.get().mode == RunMode.MULTIRUN
    if one_of_many:
        config.checkpoint.save_dir = HydraConfig.get().runtime.output_dir
    try:
        asked = complete(config)
        check_packages(asked)
        result = train(asked)
        for line in evaluate_run(result.save_dir, asked, result.labelled_files):
            _log.info(line)
    except Exception as error:
        found = None if _TRACEBACKS else _explained(error)
        if found is None:
            raise
        message, code = found
        if one_of_many:
            _complain(f"{config.checkpoint.save_dir}: {message}")
            _failed.append(code)
        else:  # SystemExit passes through Hydra, which would print a line of its own about the rest
            _fail(message, code)


def main() -> None:
    """The console script."""
    register()
    # Hydra renders errors itself and exits, unless this is set; ours take one line.
    os.environ[_FULL_ERROR] = "1"
    _failed.clear()
    try:
        _run()
    except KeyboardInterrupt:
        print("bart-hk-train: interrupted; the same command goes on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not _TRACEBACKS and isinstance(error, OSError) and error.errno and not error.filename:
            # Hydra's record of the run, which it writes before `_run`.
            given = (argument for argument in sys.argv if argument.startswith(_SAVE_DIR + "="))
            _fail(f"{next(given, _SAVE_DIR)} cannot be written: {error.strerror}", 1)
        found = None if _TRACEBACKS else _explained(error)
        if found is None:
            raise
        _fail(*found)
    if _failed:
        sys.exit(max(_failed))


def _explained(error: Exception) -> tuple[str, int] | None:
    """What to say of an error whose cause is not in this program, and the exit code; else None."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return _explain(error), 2
    if isinstance(error, OSError) and error.filename:  # from making Hydra's directory
        return f"checkpoint.save_dir: {error.filename} cannot be made: {error.strerror}", 1
    if isinstance(error, ValueError | FileNotFoundError | ImportError):
        return str(error), 2
    if isinstance(error, OSError | FloatingPointError | WorkerError):
        return str(error), 1
    return None


def _complain(message: str) -> None:
    print(f"bart-hk-train: error: {' '.join(message.split())}", file=sys.stderr)


def _fail(message: str, code: int) -> NoReturn:
    _complain(message)
    sys.exit(code)


def _explain(error: BaseException) -> str:
    """One line for what Hydra or OmegaConf complains about."""
    cause = error.__cause__
    if isinstance(cause, OmegaConfBaseException):
        return explain(cause)
    if isinstance(error, OmegaConfBaseException):
        return explain(error)
    text = str(error)
    unknown = re.match(r"Could not override '([^']+)'", text)
    if unknown:
        return unknown_key(unknown[1])
    option = re.match(r"In '.*?': Could not find '(\w+)/([^']+)'", text)
    if option:
        folder = _CONF / option[1]
        files = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.yaml"))
        names = GROUPS.get(option[1]) or sorted(path.as_posix() for path in files)
        return f"{option[1]}={option[2]} is not one of {', '.join(names)}"
    return text


if __name__ == "__main__":
    main()
