"""What generation options are called elsewhere, and what to give here instead.

`GenerationOptions` has fairseq's names; users who come from transformers, CTranslate2 or fairseq's
`SequenceGenerator` try the names they know. Where a number means something else, the line says so.
"""

# name -> what to write here
_INSTEAD = {
    # transformers
    "num_beams": "beam",
    "num_return_sequences": "nbest (with sampling: beam, the number of samples)",
    "length_penalty": "lenpen",
    "max_length": "max_len_b, which counts neither the start token nor </s>: max_length - 2",
    "max_new_tokens": "max_len_b, which does not count </s>: max_new_tokens - 1",
    "min_length": "min_len, which does not count the start token: min_length - 1",
    "min_new_tokens": "min_len",
    "do_sample": "sampling=True, or with several beams beam_sampling=True",
    "top_k": "sampling_topk, with sampling=True",
    "top_p": "sampling_topp, with sampling=True",
    "num_beam_groups": "diverse_beam_groups",
    "diversity_penalty": "diverse_beam_strength",
    "force_words_ids": "constraints, a list of phrases for each row",
    "decoder_input_ids": "prefix_tokens, without the decoder's start token",
    "decoder_start_token_id": "an argument of bart_hk.load",
    "encoder_outputs": "encoder_out",
    "forced_eos_token_id": "nothing: a text that is as long as it may be always ends with </s>",
    "input_ids": "the first argument, rows of ids",
    "attention_mask": "nothing: padding is recognised by its id",
    "use_cache": "nothing: the cache is always used",
    "output_scores": 'nothing: every hypothesis has its "positional_scores"',
    "output_attentions": "attention=True, for the last layer's",
    "return_dict_in_generate": "nothing: hypotheses are dictionaries",
    "streamer": "stream(text, ...), which yields text as it is decoded",
    "stopping_criteria": "stop_strings, or stream(text, ...), which may be left at any token",
    "max_time": "nothing: stream(text, ...) may be left at any token",
    "remove_invalid_values": "nothing: where there is no number a warning says so",
    "watermarking_config": "logits_processor, a function that adds to the scores of some tokens",
    "synced_gpus": "nothing: one device generates",
    "assistant_model": "nothing: a second model makes the same text sooner at best",
    "prompt_lookup_num_tokens": "nothing: a lookup makes the same text sooner at best",
    "guidance_scale": "logits_processor, a function of your own",
    # CTranslate2
    "beam_size": "beam",
    "num_hypotheses": "nbest",
    "max_decoding_length": "max_len_b, which does not count </s>",
    "min_decoding_length": "min_len",
    "sampling_temperature": "temperature",
    "target_prefix": "prefix_tokens",
    "suppress_sequences": "bad_words_ids, sequences of ids",
    "disable_unk": "suppress_tokens, with the id of <unk>",
    "max_batch_size": "batch_size, or max_tokens for padded tokens",
    "return_scores": 'nothing: every hypothesis has its "score"',
    "return_attention": "attention=True",
    # fairseq's SequenceGenerator
    "len_penalty": "lenpen",
    "unk_penalty": "unkpen",
    "normalize_scores": "unnormalized, the opposite",
    "tokens_to_suppress": "suppress_tokens",
    "lm_model": "lm, a function of tokens and their number",
    "score_reference": "score(sources, targets)",
    "retain_dropout": "nothing: a search is without dropout; sampling=True draws different texts",
    "no_early_stop": "nothing: fairseq ignores it, too",
    "max_len": "max_len_b",
}


def instead_of(name: str) -> str | None:
    """What to give here instead of an option of that name elsewhere; None where it is not known."""
    return _INSTEAD.get(name)
