"""A loaded model that turns the inputs of `bart-hk-generate` into what it writes."""

import argparse
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bart_hk.cli.inputs import Item, lines_of, open_lines
from bart_hk.cli.option_flags import preset_options
from bart_hk.cli.outputs import FORMATS
from bart_hk.errors import CutTextWarning, NothingFoundWarning
from bart_hk.generation import alignment
from bart_hk.generation.lists import plan, renumbered
from bart_hk.generation.options import GenerationOptions
from bart_hk.generation.trie import Trie
from bart_hk.hub import BARTHubInterface, load

logger = logging.getLogger("bart-hk-generate")

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


class ItemGenerator:
    """A loaded model that turns items into text to write."""

    def __init__(self, arguments: argparse.Namespace, options: Mapping[str, Any]) -> None:
        """Loads the model, and what else the command names.

        Args:
            arguments: of the command.
            options: of `GenerationOptions`, those that were given.
        """
        self.arguments = arguments
        kwargs: dict[str, Any] = {"dtype": DTYPES[arguments.dtype]}
        for name in ("checkpoint_file", "device", "revision"):
            if (value := getattr(arguments, name)) is not None:
                kwargs[name] = value
        self.words: Mapping[str, str] = {}
        if arguments.replace_unk:
            self.words = alignment.read_dictionary(arguments.replace_unk)
        self.lm = _function("lm", arguments)
        self.logits_processor = _function("logits_processor", arguments)
        self.bart: BARTHubInterface = load(
            arguments.path, data_name_or_path=arguments.data, **kwargs
        )
        self.trie = None
        if arguments.allowed_outputs:
            self.trie = self._trie(Path(arguments.allowed_outputs))
        self.render = FORMATS[arguments.format]
        asked = {**preset_options(arguments.preset, self.bart), **options}
        self.options = {**asked, "nbest": arguments.nbest}
        # `generate` has a beam of its own, before which the model's would not count.
        defaults = {"beam": GenerationOptions.beam, **self.bart.extras.get("generation", {})}
        self.options.setdefault("beam", defaults["beam"])
        self.order = self.options.pop("constraints", None)
        self.had_constraints = False  # did any input bring phrases?
        self.prints_alignment = "print_alignment" in self.options
        if arguments.replace_unk is not None:
            self.options["print_alignment"] = "hard"

    def _trie(self, path: Path) -> Trie:
        with open_lines(path) as file:
            outputs = [line.strip() for line, _ in lines_of(file, str(path))]
        if not any(outputs):
            raise ValueError(f"--allowed-outputs {path} holds nothing")
        start, eos = self.bart.encode_prefix(), self.bart.config.eos_token_id
        rows = self.bart.text.encode_batch([output for output in outputs if output])
        return Trie([np.concatenate([start, row, [eos]]) for row in rows], eos)

    def batches(self, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Indices of the rows of each batch."""
        arguments, config = self.arguments, self.bart.config
        lengths = [len(row) for row in rows]
        limits = (arguments.max_tokens, arguments.batch_size)
        return [batch for batch, _ in plan(lengths, config.max_source_positions, *limits)]

    def encode(self, items: Sequence[Item]) -> tuple[list[np.ndarray], list[int]]:
        """The ids of the sources, and the numbers of those that had to be cut."""
        with warnings.catch_warnings():  # all that are cut are counted here
            warnings.simplefilter("ignore", CutTextWarning)
            rows = self.bart.encode([item.source for item in items])
        longest = min(self.bart.max_positions)
        full = [i for i, row in enumerate(rows) if len(row) >= longest]
        whole = self.bart.text.encode_batch([items[i].source for i in full])
        cut = [
            items[i].number for i, ids in zip(full, whole, strict=True) if len(ids) > longest - 2
        ]
        return rows, cut

    def texts(self, items: Sequence[Item], rows: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Of each item the "text" to write and its "best" hypothesis."""
        arguments, options = self.arguments, dict(self.options)
        if any(item.constraints is not None for item in items):
            options["constraints"] = [
                self.bart.text.encode_batch(item.constraints or ()) for item in items
            ]
            options["ordered"] = self.order == "ordered"
        if any(item.constraints for item in items):
            self.had_constraints = True
        if arguments.prefix_size:
            options["prefix_tokens"] = [self._reference_prefix(item) for item in items]
        elif arguments.prefix is not None or any(item.prefix is not None for item in items):
            options["prefix_tokens"] = [
                self.bart.encode_prefix(item.prefix or arguments.prefix or "") for item in items
            ]
        if self.options.get("sampling") or self.options.get("beam_sampling"):
            # A line's draws must not depend on which lines are in its batch.
            options["draw_numbers"] = [item.number for item in items]
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = self.bart.generate(
                    list(rows),
                    prefix_allowed_tokens_fn=self.trie,
                    lm=self.lm,
                    logits_processor=self.logits_processor,
                    stop_strings=arguments.stop_strings,
                    attention=False,
                    max_tokens=arguments.max_tokens,
                    batch_size=arguments.batch_size,
                    **options,
                )
        except ValueError as error:
            raise ValueError(renumbered(str(error), [item.number for item in items])) from None
        for warning in caught:
            if not issubclass(warning.category, NothingFoundWarning):
                warnings.warn_explicit(
                    warning.message, warning.category, warning.filename, warning.lineno
                )
            elif not arguments.quiet:
                numbers = [item.number for item in items]
                logger.warning("%s", renumbered(str(warning.message), numbers))
        results = []
        for item, hypotheses in zip(items, found, strict=True):
            readable = [self._readable(item, hypothesis) for hypothesis in hypotheses]
            best = readable[0]["text"] if readable else ""
            results.append({"text": self.render(item, readable), "best": best})
        return results

    def _reference_prefix(self, item: Item) -> np.ndarray:
        if item.target is None:
            raise ValueError(
                f"--prefix-size {self.arguments.prefix_size} takes the beginning of a "
                f"reference, and input {item.number} has none"
            )
        if item.prefix is not None:
            raise ValueError(
                f"--prefix-size {self.arguments.prefix_size} and the prefix of input "
                f"{item.number} both say how its output begins; give one"
            )
        start = self.bart.encode_prefix()
        ids = self.bart.text.encode(item.target)[: self.arguments.prefix_size]
        return np.concatenate([start, ids]).astype(np.int32)

    def _readable(self, item: Item, hypothesis: Mapping[str, Any]) -> dict[str, Any]:
        source = None if self.arguments.replace_unk is None else item.source
        text, symbols = self.bart.written(hypothesis, source, self.words)
        pairs = hypothesis["alignment"] if self.prints_alignment else ()
        return {**hypothesis, "text": text, "symbols": " ".join(symbols), "alignment": pairs}


def _function(argument: str, arguments: argparse.Namespace) -> Callable[..., Any] | None:
    """The function that an argument names as "module:name", if it is given.

    Raises:
        ValueError: there is none.
    """
    if (name := getattr(arguments, argument)) is None:
        return None
    module, _, attribute = name.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), attribute)
        if not callable(function):
            raise ValueError(f"a {type(function).__name__} is no function")
        return function
    except (ImportError, AttributeError, ValueError) as error:
        flag = f"--{argument.replace('_', '-')}"
        raise ValueError(f"{flag} {name}: {error}; it is MODULE:NAME of a function") from None
    finally:
        sys.path.remove(os.getcwd())
