"""Ids of tokens or characters to text."""

from typing import Optional, Sequence

from ..errors import UserError


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


class Characters(object):
    """Ids of a CTC model to text. table: index = id, value = the character, None for special tokens (skipped)."""

    def __init__(self, table: Sequence[Optional[str]], delimiter: str) -> None:
        self._table, self._delimiter = table, delimiter

    def __call__(self, tokens: Sequence[int]) -> str:
        """Text of the ids, words apart by one space."""
        return spell(tokens, self._table, self._delimiter)


def spell(ids: Sequence[int], characters: Sequence[Optional[str]], delimiter: str) -> str:
    """Text of character ids: None in the table is skipped, the delimiter stands between words."""
    pieces = [characters[number] or "" for number in ids]
    return " ".join("".join(" " if piece == delimiter else piece for piece in pieces).split())
