"""Where two texts differ: short windows with marks, for people who look at the worst utterances."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

AROUND = 3
"""Equal words shown on each side of a difference."""
LONGEST_PART = 8
"""Words of a difference that are shown; of a longer one the middle is left out."""
LONGEST_LINE = 160


def differences(said: str, got: str, by_character: bool = False) -> list[dict[str, str]]:
    """Windows around each difference of two normalised texts: {"said": "... turn the [light] on ...", "got": ...}.

    What is marked in one text stands for what is marked in the other; [] is nothing. by_character: for languages that put
    no spaces between words.
    """
    a, b = said.split(), got.split()
    space, around = " ", AROUND
    if by_character:
        a, b, space, around = list(said), list(got), "", 4 * AROUND
    windows = []
    for group in SequenceMatcher(None, a, b, autojunk=False).get_grouped_opcodes(around):
        if all(tag == "equal" for tag, *_ in group):
            continue
        (_, a_start, _, b_start, _), (_, _, a_end, _, b_end) = group[0], group[-1]
        of_a = [_part(a[i:j], tag, space) for tag, i, j, _, _ in group]
        of_b = [_part(b[i:j], tag, space) for tag, _, _, i, j in group]
        windows.append(
            {
                "said": _line(of_a, space, a_start > 0, a_end < len(a)),
                "got": _line(of_b, space, b_start > 0, b_end < len(b)),
            }
        )
    return windows


def _part(tokens: Sequence[str], tag: str, space: str) -> str:
    if tag == "equal":
        return space.join(tokens)
    if len(tokens) > LONGEST_PART:
        half = LONGEST_PART // 2
        tokens = [*tokens[:half], f"... ({len(tokens) - LONGEST_PART} more) ...", *tokens[-half:]]
    return f"[{space.join(tokens)}]"


def _line(parts: Sequence[str], space: str, is_cut_before: bool, is_cut_after: bool) -> str:
    text = space.join(part for part in parts if part)
    if len(text) > LONGEST_LINE:
        text, is_cut_after = text[: LONGEST_LINE - 4], True
    return ("... " if is_cut_before else "") + text + (" ..." if is_cut_after else "")
