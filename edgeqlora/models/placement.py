"""Which linears of a model get adapters: groups of blocks, attention or feed-forward, or one inside the other."""

from __future__ import annotations

from collections.abc import Mapping

from edgeqlora.errors import UserError

KINDS: dict[str, tuple[str, ...]] = {
    "attention": ("query", "key", "value", "output"),
    "feed-forward": ("inner", "outer"),
}
"""Roles of linears (see models/family.py) by what they are a part of."""

ALL = "all"

Part = tuple[str | None, str | None]
"""Group and kind; None: any."""


def parse_placement(text: str) -> list[Part]:
    """`all`, `attention`, `encoder`, `encoder:attention`, or several with commas between (all of them together).

    Groups are of the model and are not looked up here. Raises UserError for a kind that is none, and for empty parts.
    """
    parts: list[Part] = []
    for part in text.split(","):
        group, colon, kind = part.strip().partition(":")
        if not colon and group in (ALL, *KINDS):
            parts.append((None, None if group == ALL else group))
        elif group and (not colon or kind in KINDS):
            parts.append((group, kind or None))
        else:
            raise UserError(
                f"adapt={text!r}: {part.strip()!r} is no part of a model; give all, attention, feed-forward, a group of the "
                "model such as encoder, or both as in encoder:attention; several with commas between"
            )
    return parts


def place(groups: Mapping[str, list[str]], roles: Mapping[str, str], adapt: str) -> dict[str, list[str]]:
    """Those of the linears (full names by group) that `adapt` asks for; groups without any are left out.

    roles: by the last part of a name. Raises UserError for a group that the model does not have, and a part without linears.
    """
    kept: set[str] = set()
    for group, kind in parse_placement(adapt):
        if group is not None and group not in groups:
            raise UserError(f"adapt={adapt!r}: {group!r} is no group of this model, allowed are {', '.join(groups)}")
        found = [
            name
            for of, names in groups.items()
            for name in names
            if group in (None, of) and (kind is None or roles.get(name.rpartition(".")[2]) in KINDS[kind])
        ]
        if not found:
            raise UserError(f"adapt={adapt!r}: {group} has no {kind} linears in this model; leave that part out")
        kept.update(found)
    placed = {group: [name for name in names if name in kept] for group, names in groups.items()}
    return {group: names for group, names in placed.items() if names}
