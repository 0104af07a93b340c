"""Texts that say the same again: where to end them."""

from typing import List, Optional, Sequence, Set, Tuple

LOOP_ROUNDS, LOOP_TOKENS = 6, 32
"""A text that ends in this many rounds of the same tokens, and this many tokens of such rounds, repeats itself: a command of
four tokens said eight times, a word of one said 32 times. Since one round is kept, more patience costs time, not words."""


def loop_start(tokens: Sequence[int]) -> Optional[int]:
    """Where the second round of a loop begins that these tokens end in, or None where they end in none.

    Whisper on noise, or on a window that it was not trained in, says the same words until it reaches its limit.
    """
    n = len(tokens)
    for period in range(1, n // LOOP_ROUNDS + 1):
        if tokens[n - 1] != tokens[n - 1 - period]:
            continue
        start = n - period * (max(LOOP_ROUNDS, -(-LOOP_TOKENS // period)) - 1)
        if start >= period and tokens[start:] == tokens[start - period : n - period]:
            return start
    return None


def said_before(tokens: Sequence[int]) -> int:
    """Of tokens that reached the limit: how many come before four of five runs of three are repeats, to the end.

    Far more tokens than anybody speaks in a window: what repeats in them, if not to the letter, was not said.
    """
    runs = [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]
    known: Set[Tuple[int, ...]] = set()
    is_new: List[bool] = []
    for run in runs:
        is_new.append(run not in known)
        known.add(run)
    kept, n_new = len(tokens), 0
    for i in range(len(runs) - 1, -1, -1):
        n_new += is_new[i]
        if not is_new[i] and 5 * n_new <= len(runs) - i:
            kept = i
    return kept
