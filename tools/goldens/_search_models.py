"""The two small BARTs whose searches `generation.py` records: `python _search_models.py OUT_DIR`
trains them for about a minute. Trained weights are an input, kept in `tests/goldens/inputs`.

A random model only repeats itself. These fill gaps in strings of a small language in which much is
open: each symbol has three successors of unequal probability, gaps hide how long they are, a symbol
in twelve is `<unk>`, and some pairs follow each other in circles. So beams, lengths, `<unk>` and
repeated n-grams all matter to a search.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _oracles import cross_entropy, fairseq_bart
from safetensors.torch import save_file

BOS, PAD, EOS, UNK, MASK = 0, 1, 2, 3, 4
SMALL = {
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_layers": 1,
    "max_source_positions": 32,
    "dropout": 0.0,
}
MODELS: dict[str, dict[str, Any]] = {
    # Room for more than the 32 tokens of the search's first stage.
    "post_norm": {
        **SMALL,
        "vocab_size": 48,
        "encoder_embed_dim": 40,
        "encoder_ffn_embed_dim": 64,
        "decoder_ffn_embed_dim": 64,
        "decoder_layers": 2,
        "max_target_positions": 40,
    },
    "pre_norm": {
        **SMALL,
        "vocab_size": 70,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 64,
        "decoder_ffn_embed_dim": 64,
        "decoder_layers": 1,
        "max_target_positions": 24,
        "encoder_normalize_before": True,
        "decoder_normalize_before": True,
        "no_scale_embedding": False,
        "layernorm_embedding": False,
        "activation_fn": "relu",
    },
}


class Language:
    """Strings of a random Markov chain over the ids above MASK, with gaps in them."""

    def __init__(self, vocab_size: int) -> None:
        rng = np.random.default_rng(7)
        self.vocab_size = vocab_size
        self.successors = rng.integers(MASK + 1, vocab_size, (vocab_size, 3))
        # A circle of two at every fifth id, entered often.
        for a in range(MASK + 1, vocab_size - 1, 5):
            self.successors[a, 0], self.successors[a + 1, 0] = a + 1, a

    def pair(self, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """A source with gaps, and its target."""
        symbol = int(rng.integers(MASK + 1, self.vocab_size))
        symbols = []
        for _ in range(rng.integers(3, 15)):
            symbols.append(symbol)
            symbol = int(self.successors[symbol, rng.choice(3, p=(0.6, 0.3, 0.1))])
        source, i = [], 0
        while i < len(symbols):
            if rng.random() < 0.3:
                source.append(MASK)
                i += int(rng.integers(0, 4))
            else:
                source.append(symbols[i])
                i += 1
        target = [UNK if rng.random() < 1 / 12 else s for s in symbols]
        return [BOS, *source, EOS], [BOS, *target, EOS]


def padded(rows: list[list[int]]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


def train(fields: dict[str, Any], updates: int = 500) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # products this small only wait for each other
    model = fairseq_bart(fields).train()
    language, rng = Language(fields["vocab_size"]), np.random.default_rng(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=updates)
    for update in range(updates):
        sources, targets = zip(*(language.pair(rng) for _ in range(64)), strict=True)
        target = padded(list(targets))
        previous = torch.cat([torch.full_like(target[:, :1], EOS), target[:, :-1]], dim=1)
        logits, _ = model(padded(list(sources)), None, previous)
        loss = cross_entropy(logits, target, PAD) / (target != PAD).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if update % 100 == 0 or update == updates - 1:
            print(f"update {update}: loss {loss.item():.3f} per token", file=sys.stderr)
    return model.state_dict()


def main(folder: Path) -> None:
    for name, fields in MODELS.items():
        state = {key: tensor.clone() for key, tensor in train(fields).items()}
        # Copies of the tied table. The rest stays: without `decoder.version`, which says nothing
        # here, fairseq takes a pre-norm decoder for an old one and leaves out its last layer norm.
        for key in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
            del state[key]
        save_file(state, folder / f"search_{name}.safetensors", {"config": json.dumps(fields)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
