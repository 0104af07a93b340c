"""Settings, a finished run and data for the tests of training."""

import json
from pathlib import Path

from edgeqlora.settings import make_settings

RUN = {"window_s": "1", "steps": 6, "batch_size": 4, "eval_every": 2, "cache": "none", "learning_rate": 5e-3, "seed": 1}


def settings_of(tiny_model: Path, clips: Path, output: Path, **change):
    given = {
        "base_model": str(tiny_model),
        "train": str(clips),
        "dev": str(clips.with_name("dev.jsonl")),
        "output": str(output),
        **RUN,
    }
    return make_settings({**given, **change})


def other_manifest(clips: Path, path: Path, **change_of_first) -> Path:
    rows = [json.loads(line) for line in clips.read_text().splitlines()]
    for row in rows:
        row["audio"] = str(clips.parent / row["audio"])
    rows[0].update(change_of_first)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
