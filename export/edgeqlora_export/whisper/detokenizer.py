"""The table that turns token ids into text on a board that has no tokenizer."""

from __future__ import annotations

from typing import Any


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
    special = set(tokenizer.all_special_ids)
    added = set(tokenizer.get_added_vocab().values())
    table: list[str | None] = [None] * vocab_size
    for token, token_id in tokenizer.get_vocab().items():
        if token_id >= vocab_size or token_id in special or (token.startswith("<|") and token.endswith("|>")):
            continue
        if token_id not in added and all(character in byte_of for character in token):
            table[token_id] = bytes(byte_of[character] for character in token).decode("latin-1")
        else:
            table[token_id] = token.encode("utf-8").decode("latin-1")
    return table
