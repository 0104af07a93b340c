"""Ranks: from `uniform:R` or a ranks.json to the rank and alpha patterns that PEFT takes."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora_jetson.files import read_json, sha256_file

SCHEMA = "edgeqlora.lora.ranks/1"


@dataclass(frozen=True)
class Ranks:
    """LoRA ranks by full module name."""

    rank: dict[str, int]
    """Rank of each adapted linear; every adapted linear has one."""
    alpha: dict[str, float]
    """LoRA alpha of each adapted linear (scaling = alpha / rank)."""
    source: str
    """Where they come from: `uniform:8` or a path."""
    init: str = "random"
    """Where the adapters start (see lora/initialise.py)."""
    start: Path | None = None
    """File of their first weights; None: PEFT's own random ones."""


def resolve_ranks(text: str, linears: dict[str, tuple[int, int]], lora_alpha: float | None) -> Ranks:
    """Ranks for `linears` (full name -> (out_features, in_features)).

    text: `uniform:R`, `flex:R` (R is where it begins), or the path of a ranks.json: {"schema": "edgeqlora.lora.ranks/1", "rank_pattern": {full name: rank},
    "alpha_pattern": {full name: alpha}} (alpha_pattern may be left out: twice the rank).
    "init" and "start" (first weights of the adapters, in a file beside it) may be there as `edgeqlora ranks` writes them.
    A module that ranks.json leaves out, or gives rank 0, gets no adapter. Raises UserError on names that match nothing
    (PEFT would ignore them silently, peft#3582) and on ranks above the smaller side of the matrix.
    """
    if text.startswith(("uniform:", "flex:")):
        kind, _, number = text.partition(":")
        if not re.fullmatch("[0-9]{1,4}", number) or not 1 <= int(number) <= 1024:
            raise UserError(f"ranks={text!r}: the rank after '{kind}:' must be a whole number from 1 to 1024")
        rank = dict.fromkeys(linears, int(number))
        given_alpha: dict[str, float] = {}
        init, start = "random", None
    else:
        path = Path(text)
        if not os.path.isfile(path):
            raise UserError(f"ranks={text!r}: neither 'uniform:R' (e.g. uniform:8) nor an existing ranks.json")
        content = read_json(path, "ranks.json")
        if (
            not isinstance(content, dict)
            or content.get("schema") != SCHEMA
            or not isinstance(content.get("rank_pattern"), dict)
            or not isinstance(content.get("alpha_pattern", {}), dict)
        ):
            raise UserError(
                f"{path}: expected schema {SCHEMA!r} with a 'rank_pattern' of full module names to ranks, and an "
                "'alpha_pattern' of names to alphas or none"
            )
        rank, given_alpha = content["rank_pattern"], content.get("alpha_pattern", {})
        init, start = _start_of(path, content)
        for name, value in given_alpha.items():
            if name not in rank or isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
                raise UserError(
                    f"{path}: alpha {value!r} of {name!r}: alphas are numbers above 0 and below 1e9 of modules in rank_pattern"
                )
    for name, value in rank.items():
        if name not in linears:
            raise UserError(
                f"ranks: {name!r} is no adapted linear of this model (first ones: {', '.join(list(linears)[:3])})"
            )
        limit = min(linears[name])
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
            raise UserError(
                f"ranks: rank {value!r} of {name} is out of range: 0 to {limit} (the smaller side of the matrix)"
            )
    rank = {name: value for name, value in rank.items() if value > 0}
    if not rank:
        raise UserError(f"ranks={text!r} gives every layer rank 0: nothing would be trained")
    alpha = {name: float(given_alpha.get(name, lora_alpha or 2 * value)) for name, value in rank.items()}
    return Ranks(rank, alpha, text, init, start)


def recorded_weights(text: str) -> dict[str, float]:
    """What each linear deserves, as `edgeqlora ranks` wrote it into the file that `text` names; empty where nothing is said."""
    content = read_json(text, "ranks.json") if os.path.isfile(text) else {}
    scores = content.get("scores") if isinstance(content, dict) else None
    found = {
        name: row.get("weight")
        for name, row in (scores if isinstance(scores, dict) else {}).items()
        if isinstance(row, dict)
    }
    return {name: float(weight) for name, weight in found.items() if isinstance(weight, int | float) and weight > 0}


def _start_of(path: Path, content: dict[str, Any]) -> tuple[str, Path | None]:
    """Initialisation that a ranks.json asks for, and the file of first weights beside it. UserError if it is another."""
    init, start = content.get("init", "random"), content.get("start")
    if not isinstance(init, str) or (start is not None and not isinstance(start, dict)):
        raise UserError(
            f"{path}: init={init!r:.40} and start={start!r:.40}, allowed are a name, and a file with its hash"
        )
    if start is None:
        return "random", None  # the ranks of an adapter that was trained: its first weights are not there any more
    name, sha256 = start.get("file"), start.get("sha256")
    if not isinstance(name, str) or os.path.basename(name) != name or not isinstance(sha256, str):
        raise UserError(f"{path}: start={start!r:.80}, allowed is a file beside it with its sha256")
    beside = path.parent / name
    if not beside.is_file() or sha256_file(beside) != sha256:
        raise UserError(
            f"{beside}, the first weights of {path}, is {'another file' if beside.is_file() else 'not there'}: "
            "copy both together, or make the ranks again"
        )
    return init, beside


def peft_patterns(ranks: Ranks) -> dict[str, object]:
    """Arguments of `peft.LoraConfig`: r, lora_alpha, target_modules, rank_pattern, alpha_pattern.

    Keys are anchored and escaped: PEFT matches them as regular-expression suffixes, so `layers.1.fc1` alone would hit
    the encoder and the decoder. The most frequent rank becomes `r`, which keeps the pattern small.
    """
    values = sorted(ranks.rank.values())
    r = max(set(values), key=values.count)
    alphas = [ranks.alpha[name] for name, value in ranks.rank.items() if value == r]
    modal_alpha = max(set(alphas), key=alphas.count)

    def key(name: str) -> str:
        return "^" + re.escape(name)

    return {
        "r": r,
        "lora_alpha": modal_alpha,
        "target_modules": sorted(ranks.rank),
        "rank_pattern": {key(name): value for name, value in ranks.rank.items() if value != r},
        "alpha_pattern": {key(name): value for name, value in ranks.alpha.items() if value != modal_alpha},
    }
