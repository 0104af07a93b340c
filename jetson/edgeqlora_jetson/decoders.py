"""Greedy decoding, with a key/value cache or of a CTC model, and tokens to text."""

import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np

from .errors import UserError


class GreedyResult(NamedTuple):
    """Tokens of a batch of clips, and what the decoding took."""

    tokens: List[List[int]]  # per clip, without prompt and end token
    is_complete: List[bool]  # per clip: the end token came before max_new_tokens
    encoder_ms: float
    decoder_ms: float  # prefill and all steps
    first_token_ms: float  # from the call to the first token of the batch: encoder and prefill
    n_steps: int  # decoder runs, prefill included


def greedy(runtime: Any, mel: np.ndarray, spec: Dict[str, Any], max_new_tokens: int) -> GreedyResult:
    """Decode a batch of mel spectrograms, float32 (batch, n_mels, n_frames), by the most likely token each step.

    spec: the manifest's "decoding": prompt_ids, eos_id, suppress_ids (never generated), begin_suppress_ids (not
    generated first). max_new_tokens counts the end token. Rows that are finished go on with the end token.
    """
    if max_new_tokens < 1:
        raise ValueError("max_new_tokens={}, at least 1".format(max_new_tokens))
    start_s = time.perf_counter()
    state = runtime.start(runtime.encode(mel))
    encoded_s = time.perf_counter()
    first_s: Optional[float] = None
    batch, eos_id = mel.shape[0], spec["eos_id"]
    suppress = np.array(spec["suppress_ids"], dtype=np.intp)
    begin_suppress = np.array(spec["begin_suppress_ids"], dtype=np.intp)
    tokens = np.tile(np.array(spec["prompt_ids"], dtype=np.int32), (batch, 1))
    generated = np.full((batch, max_new_tokens), eos_id, dtype=np.int32)
    finished = np.zeros(batch, dtype=bool)
    n_steps = 0
    while n_steps < max_new_tokens and not finished.all():
        logits = state.step(tokens)
        logits[:, suppress] = -np.inf
        if n_steps == 0:
            logits[:, begin_suppress] = -np.inf
        best = logits.argmax(axis=1).astype(np.int32)
        best[finished] = eos_id
        if first_s is None:
            first_s = time.perf_counter()
        generated[:, n_steps] = best
        finished |= best == eos_id
        tokens = best[:, np.newaxis]
        n_steps += 1
    end_s = time.perf_counter()
    return GreedyResult(
        tokens=[_until_end(row, eos_id) for row in generated[:, :n_steps].tolist()],
        is_complete=finished.tolist(),
        encoder_ms=(encoded_s - start_s) * 1e3,
        decoder_ms=(end_s - encoded_s) * 1e3,
        first_token_ms=((first_s or end_s) - start_s) * 1e3,
        n_steps=n_steps,
    )


class Detokenizer(object):
    """Token ids to text.

    table: index = token id, value = the token's bytes as a latin-1 string, None for special tokens (skipped).
    """

    def __init__(self, table: Sequence[Optional[str]]) -> None:
        self._table = table

    def __call__(self, tokens: Sequence[int]) -> str:
        """Text of the tokens, stripped; bytes that are not UTF-8 become the replacement character."""
        pieces = []
        for token in tokens:
            if not 0 <= token < len(self._table):
                raise UserError(
                    "token {} is outside the detokenizer table, allowed 0 to {}: the table does not fit "
                    "the model, export the bundle again".format(token, len(self._table) - 1)
                )
            piece = self._table[token]
            if piece is not None:
                pieces.append(piece.encode("latin-1"))
        return b"".join(pieces).decode("utf-8", errors="replace").strip()


def collapse(ids: Sequence[int], blank_id: int) -> List[int]:
    """CTC's reading of one id a step: runs of the same id count once, blanks not at all (Graves et al. 2006)."""
    return [now for before, now in zip([blank_id] + list(ids[:-1]), ids) if now != before and now != blank_id]


def spell(ids: Sequence[int], characters: Sequence[Optional[str]], delimiter: str) -> str:
    """Text of character ids: None in the table is skipped, the delimiter stands between words."""
    pieces = [characters[number] or "" for number in ids]
    return " ".join("".join(" " if piece == delimiter else piece for piece in pieces).split())


def _until_end(tokens: List[int], eos_id: int) -> List[int]:
    return tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens
