"""The demo model's tokenizer: byte-level BPE trained on the demo's texts, laid out as Whisper's English one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import WhisperTokenizer

VOCAB_SIZE = 512

# Order and names as in openai/whisper's tokenizer.py for an English-only model: <|notimestamps|> is the last
# one, because transformers takes the first id after it for <|0.00|>. The demo model knows no timestamps.
SPECIAL_TOKENS: tuple[str, ...] = (
    "<|endoftext|>",
    "<|startoftranscript|>",
    "<|en|>",
    "<|translate|>",
    "<|transcribe|>",
    "<|startoflm|>",
    "<|startofprev|>",
    "<|nospeech|>",
    "<|notimestamps|>",
)


def train_merges(texts: Sequence[str], n_tokens: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-level BPE of `n_tokens` tokens (the 256 bytes included): its vocabulary, its merges, best first.

    Every text gets a leading space, the form in which Whisper writes a transcript.
    """
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator((f" {text}" for text in texts), trainer)
    model = json.loads(bpe.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def build_tokenizer(texts: Sequence[str], vocab_size: int = VOCAB_SIZE) -> WhisperTokenizer:
    """WhisperTokenizer of `vocab_size` tokens, special ones last, that prompts with [sot, notimestamps]."""
    from transformers import WhisperTokenizer

    vocab, merges = train_merges(texts, vocab_size - len(SPECIAL_TOKENS))
    for token in SPECIAL_TOKENS:
        vocab[token] = len(vocab)
    tokenizer = WhisperTokenizer(
        vocab=vocab,
        merges=merges,
        pad_token=SPECIAL_TOKENS[0],
        extra_special_tokens=list(SPECIAL_TOKENS[1:]),
        predict_timestamps=False,
    )
    tokenizer.model_max_length = 448
    return tokenizer
