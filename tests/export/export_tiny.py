"""A tiny random Whisper with a byte-level tokenizer: the smallest thing that can be exported."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

CONTROL = [
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|de|>",
    "<|haw|>",
    "<|transcribe|>",
    "<|translate|>",
    "<|notimestamps|>",
    "<|0.00|>",
]
EOS, SOT, EN, DE, HAW, TRANSCRIBE, TRANSLATE, NO_TIMESTAMPS, TIME_0 = range(256, 256 + len(CONTROL))
VOCAB_SIZE = 270  # five ids without a token, as in released checkpoints


def tiny_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=CONTROL[0])
    fast.add_tokens(CONTROL[1:], special_tokens=True)
    return fast


def tiny_whisper(seed=0, **changes):
    """Random weights, large enough that greedy decoding does not fall into one token."""
    settings = {
        "vocab_size": VOCAB_SIZE,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "num_mel_bins": 80,
        "max_source_positions": 100,
        "max_target_positions": 64,
        "decoder_start_token_id": SOT,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        "bos_token_id": EOS,
        "init_std": 0.3,
        **changes,
    }
    torch.manual_seed(seed)
    return WhisperForConditionalGeneration(WhisperConfig(**settings)).eval()


def tiny_generation_config(**changes):
    settings = {
        "is_multilingual": False,
        "eos_token_id": EOS,
        "pad_token_id": EOS,
        "decoder_start_token_id": SOT,
        "suppress_tokens": [SOT, 3],
        "begin_suppress_tokens": [EOS],
        **changes,
    }
    return GenerationConfig(**settings)
