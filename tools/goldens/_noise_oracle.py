"""The real fairseq's `DenoisingDataset` on given rows, with every random draw it made."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from fairseq.data import Dictionary
from fairseq.data.denoising_dataset import DenoisingDataset

Draw = list[Any]  # kind, arguments, values


def dictionary(size: int) -> Dictionary:
    """`size` symbols: the four special ones, decimal numbers ("13" is the full stop), `<mask>`."""
    found = Dictionary()
    for number in range(size - 5):
        found.add_symbol(str(number))
    found.add_symbol("<mask>")
    return found


def dataset(
    rows: list[list[int]],
    options: dict[str, Any],
    vocabulary: Dictionary,
    word_starts: list[int] | None,
    seed: int = 1,
) -> DenoisingDataset:
    """The dataset; `options` are its own, and `full_stop` may name another than "13"."""
    options = dict(options)
    stop = options.pop("full_stop", None)
    options.pop("permute", None)  # never used
    chosen = {
        "mask": 0.0,
        "mask_random": 0.0,
        "insert": 0.0,
        "rotate": 0.0,
        "permute_sentences": 0.0,
        "replace_length": 1,
        "mask_length": "subword",
        "poisson_lambda": 3.0,
    } | options
    made = DenoisingDataset(
        [torch.tensor(row) for row in rows],
        np.array([len(row) for row in rows]),
        vocabulary,
        vocabulary.index("<mask>"),
        None if word_starts is None else torch.ByteTensor(word_starts),
        shuffle=False,
        seed=seed,
        bpe="gpt2",
        **chosen,
    )
    if stop is not None:
        made.full_stop_index = stop
    # It changes what it is given.
    made.dataset = [row.clone() for row in made.dataset]
    return made


@contextlib.contextmanager
def recorded(made: DenoisingDataset) -> Iterator[list[Draw]]:
    """Everything random that fairseq draws meanwhile, in order."""
    draws: list[Draw] = []
    randperm, randint, uniform = torch.randperm, torch.randint, torch.Tensor.uniform_
    numpy: Any = np.random
    random, integer = numpy.random, numpy.randint
    distribution = made.mask_span_distribution

    def log(kind: str, size: int, values: Any) -> Any:
        flat = np.asarray(values).reshape(-1).tolist()
        if flat:
            draws.append([kind, size, flat])
        return values

    def spans(*args: Any, **options: Any) -> Any:
        found = type(distribution).sample(distribution, *args, **options)
        return log("spans", len(found), found)

    def uniforms(tensor: torch.Tensor) -> torch.Tensor:
        return log("uniforms", len(tensor), uniform(tensor))

    def tokens(*args: Any, **options: Any) -> Any:
        found = randint(*args, **options)
        return log("tokens", len(found), found)

    def offset(low: int, high: int) -> int:
        found = integer(low, high)
        log("offsets", high - 1, [found])
        return found

    torch.randperm = lambda size: log("permutations", size, randperm(size))
    torch.randint = tokens
    torch.Tensor.uniform_ = uniforms
    numpy.random = lambda: log("uniforms", 1, [random()])[0]
    numpy.randint = offset
    if distribution is not None:
        distribution.sample = spans
    try:
        yield draws
    finally:
        torch.randperm, torch.randint, torch.Tensor.uniform_ = randperm, randint, uniform
        numpy.random, numpy.randint = random, integer


def noised(
    rows: list[list[int]],
    options: dict[str, Any],
    vocabulary: Dictionary,
    word_starts: list[int] | None,
) -> list[dict[str, Any]]:
    """For each row what fairseq made of it ("source"), and its "draws"."""
    made = dataset(rows, options, vocabulary, word_starts)
    found = []
    for index in range(len(rows)):
        with recorded(made) as draws:
            if options.get("permute"):  # its own method, which nothing calls
                source = made.add_permuted_noise(made.dataset[index].clone(), options["permute"])
            else:
                source = made[index]["source"]
        found.append({"source": source.tolist(), "draws": draws})
    return found
