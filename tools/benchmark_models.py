"""Makes the random models that `benchmark.py` measures, in the peers' environment.

`python tools/benchmark_models.py base|large FOLDER`
"""

import sys
from pathlib import Path

BOS, PAD, EOS = 0, 1, 2
VOCABULARY = 50265


def ct2_tokens() -> list[str]:
    """CTranslate2 wants tokens by name: one for every id."""
    return ["<s>", "<pad>", "</s>", "<unk>", *(str(i) for i in range(4, VOCABULARY))]


def make_models(folder: Path, large: bool) -> None:
    """Random weights of bart.base's shapes, with and without a classification head, or of
    bart.large's without, in Hugging Face's and in CTranslate2's format."""
    import torch
    import transformers
    from ctranslate2.converters.transformers import BartLoader

    torch.manual_seed(0)
    width, layers, heads = (1024, 12, 16) if large else (768, 6, 12)
    config = transformers.BartConfig(
        vocab_size=VOCABULARY,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_labels=2,
        forced_bos_token_id=BOS,
        forced_eos_token_id=EOS,
    )
    classifier = transformers.BartForSequenceClassification(config)
    # Plain random weights repeat one token for ever, whatever the source. With these, every token
    # depends on its position and on the source, so a wrong cache or mask shows in the ids.
    with torch.no_grad():
        for name, weights in classifier.named_parameters():
            if "embed_positions" in name:
                weights *= 20
            elif "encoder_attn" in name and name.endswith("proj.weight"):
                weights *= 3
    if not large:
        classifier.save_pretrained(folder / "classification")
    generator = transformers.BartForConditionalGeneration(config)
    generator.model = classifier.model
    generator.tie_weights()
    name = "large-generation" if large else "generation"
    generator.save_pretrained(folder / name)

    # What CTranslate2's converter does, less the tokenizer that it would read the tokens from.
    config.normalize_before, config.normalize_embedding = False, True
    spec = BartLoader().get_model_spec(generator.eval())
    spec.register_source_vocabulary(ct2_tokens())
    spec.register_target_vocabulary(ct2_tokens())
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    for option, token in {**names, "decoder_start_token": "</s>"}.items():
        setattr(spec.config, option, token)
    spec.validate()
    spec.optimize()
    (folder / f"{name}-ctranslate2").mkdir(exist_ok=True)
    spec.save(str(folder / f"{name}-ctranslate2"))


if __name__ == "__main__":
    make_models(Path(sys.argv[2]), large=sys.argv[1] == "large")
