"""The table that turns token ids into text on every machine: a board has no tokenizer, and torch says the same."""

from __future__ import annotations

from typing import Any

from edgeqlora_export.family import equality_gate
from edgeqlora_jetson.decoders import Detokenizer
from edgeqlora_jetson.schema import Gate


def _byte_of_character() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for.

    Printable Latin-1 characters stand for themselves; the 68 others (controls, space, soft hyphen) are numbered
    in order from U+0100. Source: Radford et al. 2019 (GPT-2), released byte-pair encoder.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def detokenizer_table(tokenizer: Any, vocab_size: int) -> list[str | None]:
    """For each token id its bytes as a latin-1 string, or None for what is not text.

    tokenizer: a transformers tokenizer with a byte-level vocabulary (all of Whisper's). Special tokens, control
    tokens of the form <|...|> (languages, tasks, time stamps) and ids without a token are None; tokens that were
    added as plain text are their UTF-8 bytes.
    """
    byte_of = _byte_of_character()
    added, control = set(tokenizer.get_added_vocab().values()), set(control_tokens(tokenizer).values())
    table: list[str | None] = [None] * vocab_size
    for token, token_id in tokenizer.get_vocab().items():
        if token_id >= vocab_size or token_id in control:
            continue
        if token_id not in added and all(character in byte_of for character in token):
            table[token_id] = bytes(byte_of[character] for character in token).decode("latin-1")
        else:
            table[token_id] = token.encode("utf-8").decode("latin-1")
    return table


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Tokens that are not text, with their ids: special ones, and those of the form <|...|>."""
    special = set(tokenizer.all_special_ids)
    return {
        token: token_id
        for token, token_id in tokenizer.get_vocab().items()
        if token_id in special or (token.startswith("<|") and token.endswith("|>"))
    }


def added_tokens_gate(tokenizer: Any, read_board: Detokenizer) -> Gate:
    """Share of the tokens added as plain text that the board reads otherwise than they are written: 0 is the limit."""
    control = control_tokens(tokenizer)
    added = {token: token_id for token, token_id in tokenizer.get_added_vocab().items() if token not in control}
    read = {token: read_board([token_id]) for token, token_id in sorted(added.items())}
    differing = [f"{token!r} is read {text!r}" for token, text in read.items() if text != token.strip()]
    return equality_gate("added tokens", f"{len(added)} tokens of plain text", len(added), differing)
