"""Files that users write or that break on the way: a clear refusal or a right result, never another exception.

EDGEQLORA_MUTATIONS=5000 python -m pytest tests/test_mutations.py        # default: 200 of each kind
"""

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from edgeqlora.data.manifest import list_splits, load_for
from edgeqlora.errors import UserError
from edgeqlora.lora.ranks import resolve_ranks
from edgeqlora.settings import make_settings, read_settings

N = int(os.environ.get("EDGEQLORA_MUTATIONS", "200"))
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    0.5,
    1e308,
    float("nan"),
    10**30,
    "",
    "x",
    "²",
    "\ud800",
    "../..",
    "a\0b",
    [],
    {},
    [[]],
    {"x": 1},
]
LINEARS = {"model.encoder.layers.0.fc1": (8, 16), "model.decoder.layers.0.fc1": (8, 16)}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inside for place in places(child, (*path, key)))]


def mutate(value: Any, rng: random.Random) -> Any:
    """One to three places of a JSON value replaced, removed, renamed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        *path, key = rng.choice(places(value)[1:] or [("",)])
        node = value
        for step in path:
            node = node[step]
        if not isinstance(node, dict | list) or (isinstance(node, dict) and key not in node):
            continue
        action = rng.randrange(5)
        if action == 0:
            del node[key]
        elif action == 1 and isinstance(node, dict):
            node[str(key)[:-1] + rng.choice("xs_")] = node.pop(key)
        elif action == 2 and isinstance(node, list):
            node.append(node[key])
        else:
            node[key] = copy.deepcopy(rng.choice(ODD))
    return value


def damage(content: bytes, rng: random.Random) -> bytes:
    """Bytes cut off, changed, doubled or inserted."""
    at = rng.randrange(len(content) + 1)
    length = rng.randint(1, 8)
    return rng.choice(
        [
            content[:at],
            content[:at] + content[at + length :],
            content[:at] + rng.randbytes(length) + content[at + length :],
            content[:at] + content[at : at + length] * 2 + content[at + length :],
            content[:at] + rng.choice([b'"', b"{", b"\n", b"\t", b"\xff", b"\0", b",", b"="]) + content[at:],
        ]
    )


ROWS = [
    {"audio": "a.wav", "text": "one", "duration": 1.5, "speaker": 3, "language": "en", "split": "train"},
    {"audio_filepath": "b.wav", "text": "two", "offset": 0.5, "duration": 1.0, "id": "b", "split": "train"},
    {"audio": {"path": "c.wav", "start_time": 1, "end_time": 2}, "sentence": "three", "split": "dev"},
]
CONFIG = {
    "base_model": "m",
    "train": "t.jsonl",
    "output": "o",
    "ranks": "uniform:8",
    "steps": 5,
    "learning_rate": 0.001,
    "window_s": "2,5",
    "speed_perturb": [0.9, 1.1],
    "noise_snr_db": [5, 20],
    "report_to": [],
    "low_memory": True,
}
RANKS = {
    "schema": "edgeqlora.lora.ranks/1",
    "rank_pattern": dict.fromkeys(LINEARS, 4),
    "alpha_pattern": {"model.encoder.layers.0.fc1": 8},
}


def as_lines(rows: Any) -> bytes:
    rows = rows if isinstance(rows, list) else [rows]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_table(rows: Any) -> bytes:
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    return "\n".join(",".join(line) for line in lines).encode("utf-8", "replace")


def as_toml(settings: Any) -> bytes:
    try:
        return tomli_w.dumps(settings).encode("utf-8", "replace")
    except (TypeError, ValueError, AttributeError):  # TOML has no null
        return json.dumps(settings).encode()


def read_rows(path: Path) -> None:
    list_splits(path)
    load_for("train", path)


KINDS: dict[str, tuple[str, Any, Callable[[Any], bytes], Callable[[Path], object]]] = {
    "manifest": ("m.jsonl", ROWS, as_lines, read_rows),
    "table": ("m.csv", ROWS[:1], as_table, read_rows),
    "config": ("c.toml", CONFIG, as_toml, lambda path: make_settings(read_settings(path))),
    "ranks": (
        "ranks.json",
        RANKS,
        lambda value: json.dumps(value).encode(),
        lambda path: resolve_ranks(str(path), LINEARS, None),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_is_refused_or_read(kind, tmp_path):
    name, value, as_bytes, read = KINDS[kind]
    path, refused = tmp_path / name, 0
    path.write_bytes(as_bytes(value))
    read(path)
    for seed in range(N):
        rng = random.Random(seed)
        content = as_bytes(mutate(value, rng)) if rng.random() < 0.7 else damage(as_bytes(value), rng)
        path.write_bytes(content)
        try:
            read(path)
        except UserError:
            refused += 1
        except Exception as error:
            pytest.fail(f"seed {seed}: {type(error).__name__}: {error} for {content!r}")
    assert 0.1 * N < refused < N
