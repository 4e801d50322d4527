"""A Whisper of random weights, converted to CTranslate2 on the spot: real code, no download."""

from __future__ import annotations

from pathlib import Path


def make_teacher(folder: Path, seed: int = 0) -> Path:
    """Write a converted model with its tokenizer.json; return its folder."""
    import torch
    from ctranslate2.converters import TransformersConverter
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    end, start = "<|endoftext|>", "<|startoftranscript|>"
    languages = [f"<|{code}|>" for code in LANGUAGES if code != "yue"]  # the 99 of large-v2
    tasks = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    times = [f"<|{index * 0.02:.2f}|>" for index in range(1501)]
    specials = [end, start, *languages, *tasks, "<|notimestamps|>", *times]
    pieces = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pieces["Ġhello"] = len(pieces)
    tokenizer = Tokenizer(models.BPE(vocab=pieces, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    id_of = tokenizer.token_to_id
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 16}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    sizes |= {
        "encoder_ffn_dim": 16,
        "decoder_ffn_dim": 16,
        "vocab_size": len(pieces) + len(specials),
    }
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), id_of(end))
    config = WhisperConfig(
        **sizes,
        **ends,
        decoder_start_token_id=id_of(start),
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():  # it says one word and ends, and does not babble to the limit
        model.model.decoder.layer_norm.bias.fill_(0.5)
        model.model.decoder.embed_tokens.weight[id_of(end)] = 1.0
        model.model.decoder.embed_tokens.weight[id_of("Ġhello")] = 0.9
    model.generation_config.begin_suppress_tokens = [id_of(end)]
    model.generation_config.lang_to_id = {name: id_of(name) for name in languages}
    source, target = folder / "transformers", folder / "converted"
    model.save_pretrained(source)
    named = {"eos_token": end, "pad_token": end, "bos_token": end, "unk_token": end}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named).save_pretrained(source)
    TransformersConverter(str(source)).convert(str(target))
    tokenizer.save(str(target / "tokenizer.json"))
    return target
