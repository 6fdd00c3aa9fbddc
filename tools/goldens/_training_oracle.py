"""Updates of a small BART by the real fairseq: its Trainer, criterion, Adam, schedule and average.

Runs in the oracle's interpreter. Dropout is off, so an update is arithmetic.
"""

from typing import Any

import numpy as np
import torch
from _oracles import fairseq_bart, fairseq_dictionary
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterion
from fairseq.dataclass.configs import FairseqConfig
from fairseq.optim.adam import FairseqAdamConfig
from fairseq.optim.lr_scheduler.polynomial_decay_schedule import PolynomialDecayLRScheduleConfig
from fairseq.tasks import FairseqTask
from fairseq.trainer import Trainer
from omegaconf import OmegaConf

NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def sample(ids: dict[str, list], pad: int) -> dict[str, Any]:
    """What fairseq's collaters make of a batch's ids."""
    source, previous, target = (
        torch.tensor(ids[name]) for name in ("src_tokens", "prev_output_tokens", "target")
    )
    return {
        "id": torch.arange(len(source)),
        "nsentences": len(source),
        "ntokens": int(target.ne(pad).sum()),
        "net_input": {
            "src_tokens": source,
            "src_lengths": source.ne(pad).sum(1),
            "prev_output_tokens": previous,
        },
        "target": target,
    }


def criterion(task: Any, options: dict[str, Any]) -> Any:
    """fairseq's criterion of `options`: its name under `_name`, and its arguments."""
    arguments = {"sentence_avg": False, **options}
    kind = {
        "cross_entropy": CrossEntropyCriterion,
        "label_smoothed_cross_entropy": LabelSmoothedCrossEntropyCriterion,
    }[arguments.pop("_name")]
    return kind(task, **arguments)


def trainer(model: Any, case: dict[str, Any]) -> Trainer:
    """fairseq's Trainer for a case: `optimizer`, `lr_scheduler`, `optimization`, `ema`."""
    dictionary = fairseq_dictionary(case["fields"]["vocab_size"])
    optimizer = {"_name": "adam", "lr": [case["lr"]], **case["optimizer"]}
    schedule = {"_name": "polynomial_decay", "lr": [case["lr"]], **case["lr_scheduler"]}
    config = OmegaConf.structured(FairseqConfig)
    OmegaConf.set_struct(config, False)
    config.optimizer = OmegaConf.merge(OmegaConf.structured(FairseqAdamConfig), optimizer)
    config.lr_scheduler = OmegaConf.merge(
        OmegaConf.structured(PolynomialDecayLRScheduleConfig), schedule
    )
    changes = {
        "common": {"cpu": True},
        "optimization": {"lr": [case["lr"]], **case["optimization"]},
        "ema": {**case.get("ema", {}), "ema_fp32": True},
    }
    config = OmegaConf.merge(config, changes)
    task = FairseqTask(config.task)
    type(task).source_dictionary = type(task).target_dictionary = property(lambda self: dictionary)
    return Trainer(config, task, model, criterion(task, case["criterion"]))


def train(
    case: dict[str, Any], state: dict[str, torch.Tensor], patched: bool = True
) -> dict[str, Any]:
    """Runs `case["updates"]`, a list of lists of batches, on the model of `state`, pad id 1.

    Returns:
        arrays: the parameters afterwards (`weights/...`) and, where asked for, their average
            (`ema/...`); a table's copies only once.
        gnorm, rates: of each update; the rate is the one it was made with.
        criteria: what the criterion gives for every batch of the updates, on the first weights.
    """
    model = fairseq_bart({**case["fields"], **NO_DROPOUT}).train()
    model.load_state_dict(state, strict=True)
    made = trainer(model, case)
    batches = [[sample(ids, 1) for ids in update] for update in case["updates"]]
    criteria = []
    with torch.no_grad():
        for batch in (batch for update in batches for batch in update):
            loss, size, sums = made.criterion(model, batch)
            numbers = {name: float(value) for name, value in sums.items()}
            criteria.append({**numbers, "loss": float(loss), "sample_size": float(size)})
    if "ema" in case and patched:
        # Tied tables are one tensor under several names, and each name moves it once more.
        made.ema.fp32_params = {k: v.clone() for k, v in made.ema.fp32_params.items()}
    norms: list[float] = []
    rates = []
    clip = made.clip_grad_norm

    def measured(limit: float) -> torch.Tensor:
        norm = clip(limit)
        norms.append(float(norm))
        return norm

    made.clip_grad_norm = measured
    for update in batches:
        rates.append(made.get_lr())
        made.train_step(update)
    shares = case["fields"].get("share_all_embeddings", True)
    copies = (
        {"decoder.embed_tokens.weight", "decoder.output_projection.weight"} if shares else set()
    )
    arrays = {}
    stores = {"weights": model.state_dict()}
    if "ema" in case:
        # Not `ema.get_model()`: it is loaded without the `version`s, upon which a pre-norm stack
        # takes itself for an old one and drops its last layer norm.
        stores["ema"] = made.ema.fp32_params
    for kind, stored in stores.items():
        for name, tensor in stored.items():
            if name not in copies and not name.endswith("version"):
                arrays[f"{kind}/{name}"] = tensor.detach().float().numpy().astype(np.float32)
    return {"arrays": arrays, "gnorm": norms, "rates": rates, "criteria": criteria}
