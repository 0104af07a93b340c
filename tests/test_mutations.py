"""Files that users write or that break on the way: a clear refusal or a right result, never another exception.

EDGEQLORA_MUTATIONS=5000 python -m pytest tests/test_mutations.py        # default: 200 of each kind
"""

import copy
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from edgeqlora.data.manifest import list_splits, load_for
from edgeqlora.demo import model_dir
from edgeqlora.errors import UserError
from edgeqlora.lora.loading import open_adapter
from edgeqlora.lora.ranks import resolve_ranks
from edgeqlora.research.study import read_study
from edgeqlora.settings import make_settings, read_settings
from edgeqlora_jetson.audio.features import feature_shape
from edgeqlora_jetson.bench.run import Settings, choose_batch
from edgeqlora_jetson.board.detect import detect_board
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.commands.transcribe import format_info
from edgeqlora_jetson.decoders import DECODERS
from edgeqlora_jetson.power.sample import rail_table
from edgeqlora_jetson.sensors.session import board_facts

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
FIXTURES = Path(__file__).resolve().parent / "jetson" / "fixtures"
LINEARS = {"model.encoder.layers.0.fc1": (8, 16), "model.decoder.layers.0.fc1": (8, 16)}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inside for place in places(child, (*path, key)))]


def mutate(value: Any, rng: random.Random) -> Any:
    """One to three places of a JSON value replaced, removed, renamed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        inside = places(value)[1:]
        if not inside:
            break
        *path, key = rng.choice(inside)
        node = value
        for step in path:
            node = node[step]
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
ADAPTER = {
    "peft_type": "LORA",
    "base_model_name_or_path": str(model_dir()),
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "target_modules": ["q_proj", "v_proj"],
    "rank_pattern": {"q_proj": 2},
    "alpha_pattern": {},
    "init_lora_weights": True,
    "use_rslora": False,
    "bias": "none",
    "modules_to_save": None,
}
RANKS = {
    "schema": "edgeqlora.lora.ranks/1",
    "rank_pattern": dict.fromkeys(LINEARS, 4),
    "alpha_pattern": {"model.encoder.layers.0.fc1": 8},
    "init": "eva",
    "start": None,
}


STUDY = {
    "base_model": str(model_dir()),
    "train": "t.jsonl",
    "dev": "d.jsonl",
    "test": "e.jsonl",
    "seeds": [1, 2],
    "learning_rates": [0.001, 0.003],
    "tune_seed": 0,
    "reference": "uniform",
    "primary": ["ear"],
    "margin_wer": 0.5,
    "clips": 64,
    "settings": {"steps": 10, "window_s": "3"},
    "arm": [
        {"name": "uniform", "ranks": "uniform:4"},
        {"name": "ear", "plan": {"mode": "ear", "mean_rank": 4, "least": 2, "shares": {"cross": 2.0}, "seed": 1}},
    ],
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


def bundle_manifest() -> dict[str, Any]:
    """The tiny bundle's, with an engine request and a profile of a board of one's own."""
    manifest = json.loads((FIXTURES / "bundle" / "manifest.json").read_text())
    manifest["engine_request"] = json.loads((FIXTURES / "engine_request.json").read_text())
    manifest["profile"] |= {
        "energy_scope": "module_input",
        "total_rail": "VIN",
        "rails": ["VIN", "VDD_GPU"],
        "sum_rails": [],
        "part_numbers": ["p1"],
        "compatible": ["own,board"],
        "models": ["Own"],
        "unsourced": ["rails"],
        "memory_budget_mib": 4000,
    }
    return manifest


def use_bundle(path: Path) -> None:
    """All that reads a manifest before the first clip."""
    bundle = Bundle.load(path.parent)
    format_info(bundle).encode()
    [feature_shape(bundle.manifest, window_s) for window_s in bundle.windows_s]
    DECODERS[bundle.manifest["decoder"]["kind"]](None, bundle.manifest)
    choose_batch(Settings(scenario="offline"), bundle)
    rail_table(board_facts(BOARD, bundle))


BOARD = detect_board(str(FIXTURES), {})._replace(part_number="p1", compatible=["own,board"], model="Own")


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
    "adapter": (
        "adapter_config.json",
        ADAPTER,
        lambda value: json.dumps(value).encode(),
        lambda path: open_adapter(path.parent),
    ),
    "study": ("study.toml", STUDY, as_toml, read_study),
    "bundle": ("manifest.json", bundle_manifest(), lambda value: json.dumps(value).encode(), use_bundle),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_is_refused_or_read(kind, tmp_path):
    name, value, as_bytes, read = KINDS[kind]
    path, refused = tmp_path / name, 0
    if kind == "bundle":
        shutil.copytree(FIXTURES / "bundle", tmp_path, dirs_exist_ok=True)
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
