"""What a power source gives, and which of its rails may be counted as the consumption of the board."""

from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..errors import UserError

# What a board's profile may say. Workstations' sources have their own: cpu_package, gpu_board, cpu_package+gpu_board.
ENERGY_SCOPES = ("module_input", "system_input", "sum_of_rails", "none")

# Input rails whose name means the same on every board it is known from (jetson.md 3.2): used where the board itself is
# not known. VIN_SYS_5V0 and SYS5V are 5 V rails among others, never a total (jetson_stats#344).
INPUT_RAILS = {"POM_5V_IN": "module_input", "VDD_IN": "module_input", "VIN": "system_input"}


class Sample(NamedTuple):
    """One reading of all rails of a source."""

    time_s: float  # time.monotonic() when it was read, or when its line arrived
    rails_mw: Dict[str, float]  # present power of each rail; negative values occur (Thor's VDD_GPU at idle)
    counters_j: Dict[str, float]  # energy of each rail since the source was opened; never falls


class RailTable(NamedTuple):
    """Which rails of a board mean what; from its profile."""

    total_rail: Optional[str]  # the rail that carries the whole input
    energy_scope: str  # what counting covers: module_input, system_input, sum_of_rails, none
    sum_rails: Tuple[str, ...]  # rails that may be added up where no total rail is seen; () = adding up is not allowed
    optional_rails: Tuple[str, ...]  # added to the sum where they are seen


class Scope(NamedTuple):
    """What is counted."""

    energy_scope: str
    rails: Tuple[str, ...]


def rail_table(plain: Optional[Mapping[str, Any]]) -> Optional[RailTable]:
    """The rail table in a profile's plain values; None where the profile says nothing of rails."""
    if not plain or plain.get("energy_scope") in (None, "none"):
        return None
    scope = plain["energy_scope"]
    if scope not in ENERGY_SCOPES:
        raise UserError(
            "energy_scope={!r} in the profile, allowed {}: correct the profile and export the bundle again".format(
                scope, ", ".join(ENERGY_SCOPES)
            )
        )
    if scope == "sum_of_rails" and plain.get("total_rail"):
        raise UserError(
            "total_rail={!r} in the profile contradicts energy_scope='sum_of_rails': a total rail is the module_input or "
            "the system_input; correct the profile and export the bundle again".format(plain["total_rail"])
        )
    return RailTable(
        total_rail=plain.get("total_rail") or None,
        energy_scope=scope,
        sum_rails=tuple(plain.get("sum_rails") or ()),
        optional_rails=tuple(plain.get("optional_rails") or ()),
    )


def resolve_scope(table: Optional[RailTable], seen: Sequence[str]) -> Scope:
    """What may be counted of the rails seen at start.

    A total rail if it is there; else the sum of `sum_rails` if all of them are there, with the optional ones that are.
    Without a table only a rail that is an input wherever it is known (POM_5V_IN, VDD_IN, VIN) is taken.

    Raises UserError rather than call a part of the consumption the whole: with the rails seen, those needed, and why.
    """
    if not seen:
        raise UserError("no power rail was seen: {}".format(_HIDDEN))
    if table is None:
        return _scope_of_unknown_board(seen)
    if table.total_rail is not None and table.total_rail in seen:
        return Scope(table.energy_scope, (table.total_rail,))
    missing = [rail for rail in table.sum_rails if rail not in seen]
    if table.sum_rails and not missing:
        return Scope("sum_of_rails", table.sum_rails + tuple(r for r in table.optional_rails if r in seen))
    raise UserError(
        "the rails seen ({}) are not the whole consumption of this board: {}. {}".format(
            ", ".join(seen), _needed(table, missing), _next_step(table, seen)
        )
    )


_HIDDEN = (
    "late JetPack 4 and early JetPack 5 hide the rails from users who are not root; run it with sudo, "
    "or in a container mount /sys and tegrastats"
)


def _scope_of_unknown_board(seen: Sequence[str]) -> Scope:
    inputs: List[str] = [rail for rail in seen if rail in INPUT_RAILS]
    if len(inputs) == 1:
        return Scope(INPUT_RAILS[inputs[0]], (inputs[0],))
    raise UserError(
        "the rails seen ({}) hold {} of the known input rails ({}), and nothing says what this board's rails mean: "
        "export the bundle with the profile of this board".format(
            ", ".join(seen), "none" if not inputs else "more than one", ", ".join(sorted(INPUT_RAILS))
        )
    )


def _needed(table: RailTable, missing: Sequence[str]) -> str:
    total = "its input rail {} is missing".format(table.total_rail) if table.total_rail else "it has no input rail"
    if not table.sum_rails:
        return "{}, and its other rails do not add up to the input".format(total)
    return "{}, and of the rails to add up {} is missing".format(total, ", ".join(missing))


def _next_step(table: RailTable, seen: Sequence[str]) -> str:
    if not set(seen) & set((table.total_rail,) + table.sum_rails):
        return "None of them belongs to the profile: was the bundle exported for another board?"
    return "Run with sudo (some releases hide rails), or measure without power"
