"""The board table that travels with the runner: jetson/edgeqlora_jetson/board/boards.json, made from profiles/*.toml.

The board reads no TOML; to recognise itself, its power modes and its rails it needs these plain values:
`python -m edgeqlora.profiles.board_table` writes them, `python -m edgeqlora.profiles.board_table --check` says whether they are stale.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from edgeqlora.profiles.load import list_profiles, load_profile
from edgeqlora_jetson.files import write_text

SCHEMA = "edgeqlora.boards/1"

KEYS = (
    "title",
    "soc",
    "compute_capability",
    "memory_mib",
    "memory_bandwidth_gbs",
    "part_numbers",
    "compatible",
    "models",
    "power_modes",
    "default_power_mode",
    "default_power_mode_super",
    "energy_scope",
    "total_rail",
    "sum_rails",
    "optional_rails",
    "rails",
    "jetpacks",
)
"""What the board takes over from a profile; the names of the unsourced ones among them go along."""


def build_table() -> dict[str, Any]:
    """The table of every shipped profile of a Jetson, by profile name."""
    boards = {}
    for name in list_profiles():
        profile = load_profile(name)
        if profile.kind == "jetson":
            plain = profile.to_plain()
            unsourced = [key for key in plain["unsourced"] if key.split(".")[0] in KEYS]
            boards[name] = {**{key: plain[key] for key in KEYS}, "unsourced": unsourced}
    return {"schema": SCHEMA, "boards": boards}


def table_text() -> str:
    """The file's contents: the same profiles give the same bytes."""
    return json.dumps(build_table(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def table_path() -> Path:
    """Where the runner's package keeps the table."""
    import edgeqlora_jetson

    return Path(edgeqlora_jetson.__file__).parent / "board" / "boards.json"


def main(arguments: list[str] | None = None) -> int:
    """Write the table, or with --check only compare; exit code 1 when it is stale."""
    parser = argparse.ArgumentParser(prog="python -m edgeqlora.profiles.board_table", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when the file is stale")
    options = parser.parse_args(arguments)
    path, text = table_path(), table_text()
    stale = not path.is_file() or path.read_text(encoding="utf-8") != text
    if options.check:
        print(f"{path.name} is {'stale: run python -m edgeqlora.profiles.board_table' if stale else 'up to date'}")
        return int(stale)
    if stale:
        write_text(path, text)
    print(f"{path.name}: {len(build_table()['boards'])} boards, {'written' if stale else 'already up to date'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
