"""What checkpoints hold, as real objects of torch, fairseq and omegaconf, and what they mean.

Runs in the oracle's interpreter. `contents` makes the objects, `describe` says what a reader has to
find in them, as JSON.
"""

import argparse
import collections
import enum
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from fairseq.data.multilingual.multilingual_utils import EncoderLangtok
from fairseq.data.text_compressor import TextCompressionLevel
from fairseq.dataclass.configs import EMAConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.logging.meters import AverageMeter
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn


def tensors() -> dict[str, Any]:
    """Tensors of every dtype, shape and kind of memory that a checkpoint may have."""
    table = torch.linspace(-3, 3, 24).reshape(4, 6)
    numbers = torch.arange(-5, 7)
    with_attribute = torch.ones(2)
    with_attribute.note = "anything"
    return {
        "float32": table,
        "the same tensor": table,
        "transposed": table.T,
        "slice": table[1:3, 2:],
        "every second": table.reshape(-1)[1::2],
        "row": table[2],
        "expanded": torch.tensor([2.5]).expand(3, 2),
        "scalar": torch.tensor(3.5),
        "element": table[1, 1],
        "empty": torch.empty(0),
        "empty matrix": torch.empty(3, 0, 2),
        "float64": table.double(),
        "float16": table.half(),
        "bfloat16": table.bfloat16(),
        "bfloat16 slice": table.bfloat16()[:, 1:4],
        "int64": numbers,
        "int32": numbers.int(),
        "int16": numbers.short(),
        "int8": numbers.char(),
        "uint8": torch.arange(250, 256, dtype=torch.uint8),
        "bool": numbers > 0,
        "complex64": torch.complex(table, -table),
        "parameter": nn.Parameter(table + 1),
        "shared parameter": nn.Parameter(table, requires_grad=False),
        "with attribute": with_attribute,
        "special": torch.tensor([float("inf"), -float("inf"), float("nan"), -0.0]),
        "channels last": torch.arange(24.0)
        .reshape(1, 2, 3, 4)
        .to(memory_format=torch.channels_last),
    }


def values() -> dict[str, Any]:
    """What is no tensor."""
    return {
        "none": None,
        "bools": [True, False],
        "integers": [0, 1, -1, 255, 256, 65536, 2**31, -(2**31) - 1, 2**63, 2**100, -(2**100)],
        "floats": [0.1, -1e300, float("inf")],
        "text": ["", "bart", "Ünïcödé \u2028 👍", "x" * 300],
        "bytes": b"\x00\xff bytes",
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, (4,))),
        "sets": [{1, 2}, frozenset(["a"]), set()],
        "ordered": collections.OrderedDict([("b", 1), ("a", 2)]),
        "counter": collections.Counter("abca"),
        "default": collections.defaultdict(list, {"a": [1]}),
        "keys": {
            1: "int",
            "1": "str",
            None: "none",
            1.5: "float",
            (1, "a"): "tuple",
            False: "bool",
        },
        "size": torch.Size([2, 3]),
        "device": [torch.device("cpu"), torch.device("cuda", 1)],
        "dtype": torch.float16,
        "numpy": [np.float64(0.25), np.float32(0.5), np.int64(-7), np.bool_(True)],
        "array": np.arange(6, dtype=np.int16).reshape(2, 3),
        "Fortran array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "path": PurePosixPath("/data/bin"),
        "namespace": argparse.Namespace(arch="bart_large", lr=[3e-05], nested={"a": (1,)}),
    }


def arguments() -> argparse.Namespace:
    """A few of the arguments of a translation by a BART."""
    return argparse.Namespace(
        arch="bart_base",
        task="translation",
        criterion="label_smoothed_cross_entropy",
        optimizer="adam",
        lr_scheduler="polynomial_decay",
        data="data-bin",
        source_lang="source",
        target_lang="target",
        lr=[3e-05],
        update_freq=[4],
        max_source_positions=1024,
        share_all_embeddings=True,
        fp16=True,
        ddp_backend="no_c10d",
        encoder_langtok=EncoderLangtok.tgt,
    )


def training_checkpoint(cfg: Any, args: Any) -> dict[str, Any]:
    """What fairseq's trainer saves, around a model of two small layers and its real optimizer."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-5, betas=(0.9, 0.98))
    for _ in range(2):
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    meter = AverageMeter(round=3)
    meter.update(2.5, 4)
    state = model.state_dict()
    state["tied"] = state["0.weight"]
    return {
        "args": args,
        "cfg": cfg,
        "model": state,
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "LabelSmoothedCrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": 4.25},
                "num_updates": 2,
            }
        ],
        "task_state": {},
        "extra_state": {
            "metrics": [("default", [(0, "loss", "AverageMeter", meter.state_dict())])],
            "train_meters": collections.OrderedDict(train_loss=meter),  # as fairseq did in 2019
            "train_iterator": {"version": 2, "epoch": 1, "iterations_in_epoch": 2, "shuffle": True},
            "val_loss": np.float64(4.25),
            "best": torch.tensor(4.25),
        },
        "last_optimizer_state": optimizer.state_dict(),
    }


def contents() -> dict[str, Any]:
    """Objects to save, by name; of fairseq's configuration in each of the forms that it has had."""
    config = convert_namespace_to_omegaconf(arguments())
    plain: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    # fairseq's own enums cannot be pickled, so a configuration that was saved as such had none.
    names = {key: value for key, value in vars(arguments()).items() if key != "encoder_langtok"}
    config = OmegaConf.create({**plain, "model": names})
    config.ema = OmegaConf.structured(EMAConfig(store_ema=True))
    config.langtok = EncoderLangtok.src
    config.levels = [TextCompressionLevel.low, "${model.arch}", "???"]
    OmegaConf.set_struct(config, True)
    return {
        "tensors": tensors(),
        "values": values(),
        "state_dict": training_checkpoint(None, None)["model"],
        "args": training_checkpoint(None, arguments()),
        "cfg_plain": training_checkpoint(plain, None),
        "cfg_omegaconf": training_checkpoint(config, None),
    }


def describe(value: Any, storages: dict[int, int] | None = None) -> Any:
    """What `value` means to a reader, as JSON. Tensors that share memory have one storage."""
    storages = {} if storages is None else storages
    if isinstance(value, torch.Tensor):
        value = value.detach()
        memory = value.untyped_storage().data_ptr()
        flat = torch.empty(value.numel(), dtype=value.dtype).copy_(value.reshape(-1))
        return {
            "tensor": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "strides": list(value.stride()),
            "offset": value.storage_offset(),
            "storage": storages.setdefault(memory, len(storages)) if value.numel() else None,
            "data": flat.view(torch.uint8).numpy().tobytes().hex(),
        }
    if isinstance(value, np.ndarray):
        data = value.tobytes().hex()
        return {"array": value.dtype.name, "shape": list(value.shape), "data": data}
    if isinstance(value, DictConfig | ListConfig):
        return describe(OmegaConf.to_container(value), storages)
    if isinstance(value, enum.Enum):
        return describe(value.value)
    if isinstance(value, argparse.Namespace):
        return {"namespace": describe(vars(value), storages)["dict"]}
    if isinstance(value, dict):
        pairs = value.items()
        return {"dict": [[describe(k, storages), describe(v, storages)] for k, v in pairs]}
    if isinstance(value, list):
        return [describe(item, storages) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [describe(item, storages) for item in value]}
    if isinstance(value, set | frozenset):
        return {"set": sorted(value)}
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, torch.dtype):
        return {"symbol": str(value)}
    if isinstance(value, torch.device | PurePosixPath):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {"symbol": f"{type(value).__module__}.{type(value).__qualname__}"}
