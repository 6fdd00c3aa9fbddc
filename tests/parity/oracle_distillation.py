"""Run by the oracle's interpreter: a torch student learns from a torch teacher, both transformers'.

`big` and `small` are the models, `batch.safetensors` the ids, `case.json` the weights of the loss.
The losses are those of transformers' examples/research_projects/seq2seq-distillation, written with
torch's own functions; the hidden states that are compared are layers' outputs. `losses.json` gets
the parts at every update, a token each; `after` the model after the last.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import BartForConditionalGeneration

PAD = 1


def hidden(mine, theirs, layers, mask, normalize):
    total = 0.0
    for state, number in zip(mine[1:], layers, strict=True):
        pair = [state, theirs[number + 1]]
        if normalize:
            pair = [functional.layer_norm(x, x.shape[-1:]) for x in pair]
        squares = functional.mse_loss(*pair, reduction="none")
        total += (squares * mask[..., None]).sum() / (mask.sum() * state.shape[-1])
    return total


def main(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text())
    batch = {name: ids.long() for name, ids in load_file(folder / "batch.safetensors").items()}
    big, small = (
        BartForConditionalGeneration.from_pretrained(folder / m) for m in ("big", "small")
    )
    big.eval(), small.eval()
    source, target = batch["src_tokens"] != PAD, batch["target"] != PAD
    given = {
        "input_ids": batch["src_tokens"],
        "attention_mask": source.long(),
        "decoder_input_ids": batch["prev_output_tokens"],
        "output_hidden_states": True,
    }
    adam = torch.optim.Adam(small.parameters(), lr=case["lr"], eps=case["eps"])
    parts = []
    for _ in range(case["updates"]):
        with torch.no_grad():
            right = big(**given)
        mine = small(**given)
        own = functional.cross_entropy(mine.logits[target], batch["target"][target])
        heat = case["temperature"]
        soft = heat**2 * functional.kl_div(
            functional.log_softmax(mine.logits[target] / heat, -1),
            functional.softmax(right.logits[target] / heat, -1),
            reduction="batchmean",
        )
        states = hidden(
            mine.encoder_hidden_states,
            right.encoder_hidden_states,
            case["encoder"],
            source,
            case["normalize_hidden"],
        ) + hidden(
            mine.decoder_hidden_states,
            right.decoder_hidden_states,
            case["decoder"],
            target,
            case["normalize_hidden"],
        )
        parts.append([float(own), float(soft), float(states)])
        adam.zero_grad()
        (case["alpha_mlm"] * own + case["alpha_ce"] * soft + case["alpha_hid"] * states).backward()
        adam.step()
    (folder / "losses.json").write_text(json.dumps(parts))
    small.save_pretrained(folder / "after")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
