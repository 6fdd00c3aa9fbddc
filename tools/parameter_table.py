"""What a BART consists of, from its config alone: `python tools/parameter_table.py bart_base`.

python tools/parameter_table.py bart_large vocab_size=8192 encoder_layers=4 decoder_layers=4
python tools/parameter_table.py a/model/directory        # only its config.json is read

Prints Haiku's table of modules (parameters, shapes, counts), and the sum. No weight is allocated.
"""

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path

from bart_hk.checkpoint.huggingface_config import config_from_json
from bart_hk.checkpoint.tree import parameter_shapes
from bart_hk.config import ARCHITECTURES, BARTConfig, architecture
from bart_hk.model.summary import module_table


def read_config(name: str, overrides: list[str]) -> BARTConfig:
    """The config of an architecture, or of a model directory, with FIELD=VALUE changed.

    Raises:
        ValueError, TypeError, OSError: there is no such name or field, or a value does not fit.
    """
    path = Path(name)
    if path.is_dir():
        config = config_from_json(json.loads((path / "config.json").read_text(encoding="utf-8")))
        extras = path / "bart_hk.json"
        if extras.exists():
            about = json.loads(extras.read_text(encoding="utf-8"))
            config = config.replace(**about.get("config", {}))
    else:
        config = architecture(name)
    types = {field.name: type(getattr(config, field.name)) for field in dataclasses.fields(config)}
    changes = {}
    for text in overrides:
        field, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r} is not FIELD=VALUE, such as encoder_layers=4")
        is_text = types.get(field) not in (int, float, bool, type(None))
        try:
            changes[field] = value if is_text else json.loads(value.lower())
        except ValueError:
            raise ValueError(f"{field}={value!r} is no {types[field].__name__}") from None
    return config.replace(**changes)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(ARCHITECTURES)
    parser.add_argument("model", help=f"{names}, or a model directory")
    parser.add_argument("overrides", nargs="*", metavar="FIELD=VALUE", help="of BARTConfig")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=16, help="tokens of source and target")
    args = parser.parse_args(argv)
    try:
        config = read_config(args.model, args.overrides)
        print(module_table(config, args.batch, args.length))
    except (ValueError, TypeError, OSError) as error:
        print(f"parameter_table: {error}", file=sys.stderr)
        return 2
    shapes = parameter_shapes(config)
    count = sum(math.prod(shape) for leaves in shapes.values() for shape in leaves.values())
    tensors = sum(len(leaves) for leaves in shapes.values())
    print(f"\n{count:,} parameters in {tensors} tensors: {4 * count / 1e6:,.1f} MB in float32")
    return 0


if __name__ == "__main__":
    sys.exit(main())
