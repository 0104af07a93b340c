"""`edgeqlora ablate`: the runs of a study, one after the other, and what they say.

Everything is in one folder, and every finished run is one file in it: a study that was stopped goes on, and several
processes (of one machine, or of several that share the folder) take different runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora.research.ranks import Measured, measure, write_ranks
from edgeqlora.research.study import Arm, Run, Study, chosen_rates, mean_loss, settings_of
from edgeqlora_jetson.files import read_json, write_json, write_text

Say = Callable[[str], object]


def run_study(study: Study, folder: Path, keep: bool = False, say: Say = print) -> list[dict[str, Any]]:
    """Do what is left of a study, and wait for runs that other processes are at; returns all rows.

    keep: the trained folders stay. Raises UserError where the folder is another study's, or a run ends with an error.
    """
    _open(study, folder)
    _ranks_files(study, folder, say)
    told: set[str] = set()
    while True:
        for run in study.rate_runs:
            _do(study, run, folder, keep, say)
        rates = chosen_rates(study, rows_of(folder))
        for run in study.final_runs(rates):
            _do(study, run, folder, keep, say)
        wanted = {run.key for run in (*study.rate_runs, *study.final_runs(rates))}
        left = {key for key in wanted if not (folder / "rows" / f"{key}.json").exists()}
        if not left and len(rates) == len(study.arms):
            return rows_of(folder)
        for key in sorted(left - told):
            say(f"waiting for {key}, which another process is at (its claim: {folder / 'work' / key}.claim)")
        told |= left
        time.sleep(2)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All finished runs in a study's folder, by key."""
    return [read_json(path, "row of a study") for path in sorted((folder / "rows").glob("*.json"))]


def _open(study: Study, folder: Path) -> None:
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    record = folder / "study.json"
    if not record.exists():
        write_json(record, {"schema": "edgeqlora.study/1", "fingerprint": study.fingerprint()})
    elif read_json(record, "record of a study").get("fingerprint") != study.fingerprint():
        raise UserError(
            f"{folder} holds runs of another model, data, tune_seed or clips: choose another folder with -o"
        )


def _ranks_files(study: Study, folder: Path, say: Say) -> None:
    """ranks.json of every arm that has a plan, from one measurement for each method."""
    measured: dict[str, Measured] = {}
    for arm in study.arms:
        path = _ranks_path(folder, arm)
        if arm.plan is None:
            continue
        if path.exists():
            if read_json(path, "ranks.json")["plan"] != json.loads(json.dumps(vars(arm.plan))):
                raise UserError(f"{path} is of another plan than arm {arm.name} has: name the arm otherwise")
            continue
        method = arm.settings.get("method", "qlora")
        if method not in measured:
            say(f"measuring the base model on {study.clips} clips ({method})")
            measured[method] = measure(
                study.base_model,
                study.train,
                arm.plan,
                n_clips=study.clips,
                method=method,
                window_s=arm.settings.get("window_s", "auto"),
                language=arm.settings.get("language"),
                with_spectra=True,
                say=say,
            )
        write_ranks(measured[method], arm.plan, path)


def _ranks_path(folder: Path, arm: Arm) -> Path:
    return folder / f"ranks-{arm.name}.json"


def _do(study: Study, run: Run, folder: Path, keep: bool, say: Say) -> None:
    """One run, unless its row is there or another process is at it."""
    row = folder / "rows" / f"{run.key}.json"
    with _claimed(folder / "work" / f"{run.key}.claim") as is_ours:
        if not is_ours or row.exists():
            return
        arm = study.arm(run.arm)
        settings = settings_of(
            study, run, str(_ranks_path(folder, arm)) if arm.plan else None, folder / "work" / run.key
        )
        spec = folder / "work" / f"{run.key}.json"
        write_json(
            spec,
            {
                "of": run._asdict(),
                "stage": run.stage,
                "settings": {name: value for name, value in vars(settings).items() if value not in (None, "", [])},
                "dev": study.dev,
                "test": study.test,
                "row": str(row),
                "keep": keep,
            },
        )
        log = spec.with_suffix(".log")
        with open(log, "wb") as file:
            code = subprocess.call(
                [sys.executable, "-m", "edgeqlora.research.run_arm", str(spec)], stdout=file, stderr=subprocess.STDOUT
            )
        if code:
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(
                f"run {run.key} ended with code {code}: {tail[-1] if tail else 'it said nothing'} (all of it: {log}); "
                "run the same command again to go on"
            )
        say(f"{run.key}: dev loss {mean_loss(read_json(row, 'row of a study')['dev']):.4f}")


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Inside the `with`, whether this process may do the run; a claim of a process that is gone does not count."""
    mine = {"pid": os.getpid(), "host": socket.gethostname()}
    if path.exists() and _is_stale(path, mine):
        path.unlink(missing_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        yield False
        return
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump(mine, file)
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def _is_stale(path: Path, mine: Mapping[str, Any]) -> bool:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # being written
    if holder.get("host") != mine["host"]:
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def write_results(rows: list[dict[str, Any]], folder: Path) -> Path:
    """All rows as JSON lines, without what each utterance said."""
    path = folder / "results.jsonl"
    kept = [{key: value for key, value in row.items() if key not in ("dev", "test", "adapter_sha256")} for row in rows]
    for row, whole in zip(kept, rows, strict=True):
        for name in ("dev", "test"):
            if name in whole:
                n_words = sum(u["words"] for u in whole[name])
                row[f"{name}_loss"] = round(mean_loss(whole[name]), 6)
                row[f"{name}_wer"] = round(100 * sum(u["errors"] for u in whole[name]) / max(1, n_words), 4)
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    return path
