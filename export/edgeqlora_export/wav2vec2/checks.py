"""What training, scoring and export ask of a CTC model before they take it, once for all of them."""

from __future__ import annotations

from typing import Any, NamedTuple

from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ
from edgeqlora_jetson.errors import UserError

LONGEST_WINDOW_S, WINDOW_STEP_S = 30.0, 0.02
"""The model has no limit of its own, but attention over all pairs of frames costs the square of the window."""


class Vocabulary(NamedTuple):
    """What a CTC model writes."""

    ids: dict[str, int]
    """Token -> id, of those that the head can write."""
    characters: list[str | None]
    """What each id of the head stands for, None for special ones: the table that decoding reads, on every machine."""
    blank_id: int
    delimiter: str
    """The token between words."""
    unknown_id: int | None


def check_window(window_s: float) -> None:
    """Raise UserError for a window that is too long or not a multiple of the step."""
    n_steps = window_s / WINDOW_STEP_S
    if not WINDOW_STEP_S <= window_s <= LONGEST_WINDOW_S + 1e-9 or abs(n_steps - round(n_steps)) > 1e-6:
        raise UserError(
            f"window_s={window_s:g}: allowed are multiples of {WINDOW_STEP_S} s up to {LONGEST_WINDOW_S:g} s"
        )


def check_task(task: str | None) -> None:
    """Raise UserError for a task that a CTC model has not."""
    if task not in (None, "transcribe"):
        raise UserError(f"task={task!r} cannot be asked of a CTC model: allowed is 'transcribe'")


def read_vocabulary(source: Any, tokenizer: Any, extractor: Any, config: Any) -> Vocabulary:
    """The vocabulary of a model, once tokenizer, extractor and config.json are seen to belong together.

    Special tokens that the head cannot write are left out: transformers adds <s> and </s> behind a vocab.json that
    lacks them. Raises UserError for another rate than 16 kHz, a vocabulary without blank or word delimiter or with
    characters beyond the head, and convolutions behind the encoder (add_adapter).
    """
    if int(extractor.sampling_rate) != SAMPLE_RATE_HZ:
        raise UserError(
            f"{source}: the feature extractor works at {extractor.sampling_rate} Hz, allowed is {SAMPLE_RATE_HZ} Hz: "
            "choose another model"
        )
    if config.add_adapter:
        raise UserError(
            f"{source}: add_adapter=True, allowed is False, since the convolutions behind the encoder change the number "
            "of frames; choose a model without them"
        )
    size, delimiter = int(config.vocab_size), tokenizer.word_delimiter_token
    # The tokenizer counts its word delimiter among the special tokens.
    special = set(tokenizer.all_special_tokens) - {delimiter}
    ids = {token: int(n) for token, n in tokenizer.get_vocab().items() if n < size or token not in special}
    beyond = sorted(token for token, n in ids.items() if n >= size)
    if beyond:
        raise UserError(
            f"{source}: the model's head writes {size} ids, and the tokenizer has {', '.join(map(repr, beyond[:5]))} "
            "beyond them: use the tokenizer that came with the model"
        )
    if tokenizer.pad_token not in ids or delimiter not in ids:
        raise UserError(
            f"{source}: the tokenizer needs a padding token (the blank of CTC, found {tokenizer.pad_token!r}) and its "
            f"word delimiter {delimiter!r} in vocab.json: use the tokenizer that came with the model"
        )
    characters: list[str | None] = [None] * size
    for token, number in ids.items():
        # do_lower_case: transformers writes what it decodes in lower case, whatever the vocabulary has.
        characters[number] = None if token in special else token.lower() if tokenizer.do_lower_case else token
    return Vocabulary(ids, characters, ids[tokenizer.pad_token], delimiter, ids.get(tokenizer.unk_token))
