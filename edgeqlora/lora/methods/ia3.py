"""IA3 (Liu et al. 2022, arXiv 2205.05638) by PEFT: vectors that scale keys, values and the inner features of feed-forward."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgeqlora.errors import UserError

ROLES = ("key", "value", "outer")
"""Roles of the linears that get a vector: on the output of keys and values, on the input of the outer feed-forward linear."""


def ia3_config(linears: Iterable[str], roles: Mapping[str, str]) -> Any:
    """PEFT's configuration for those of `linears` (full names) that IA3 scales.

    roles: of the family, by the last part of a name (see models/family.py). Raises UserError where none is left.
    """
    from peft import IA3Config

    role_of = {name: roles.get(name.rpartition(".")[2]) for name in linears}
    chosen = sorted(name for name, role in role_of.items() if role in ROLES)
    if not chosen:
        raise UserError("method='ia3' scales keys, values and feed-forward, and `adapt` leaves none of them: widen it")
    # task_type stays unset: with one, peft passes input_ids, which speech models do not take (peft#1988).
    return IA3Config(target_modules=chosen, feedforward_modules=[name for name in chosen if role_of[name] == "outer"])
