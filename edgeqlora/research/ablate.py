"""`edgeqlora ablate`: the runs of a study, one after the other, and what they say.

Everything is in one folder, and every finished run is one file in it: a study that was stopped goes on, and several
processes (of one machine, or of several that share the folder) take different runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora.research.ranks import Measured, Plan, measure, write_ranks
from edgeqlora.research.run_arm import SETS, run_apart
from edgeqlora.research.study import Arm, Run, Study, chosen_rates, mean_loss, settings_of
from edgeqlora.research.verdict import by_speaker
from edgeqlora.settings import TrainSettings
from edgeqlora_jetson.files import read_json, write_json, write_text

Say = Callable[[str], object]

PLACES = ("output", "base_model", "train", "ranks")
"""Settings that name files: what is in them is compared by hash, and the plan of ranks with that of its ranks.json."""


def run_study(study: Study, folder: Path, keep: bool = False, say: Say = print) -> list[dict[str, Any]]:
    """Do what is left of a study, and wait for runs that other processes are at; returns all rows.

    keep: the trained folders stay. Raises UserError where the folder is another study's, or a run ends with an error.
    """
    data = data_of(study)
    _open(study, folder, data)
    _ranks_files(study, folder, say)
    told: set[str] = set()
    while True:
        for run in study.rate_runs:
            _do(study, run, folder, data, keep, say)
        rates = chosen_rates(study, rows_of(folder))
        for run in study.final_runs(rates):
            _do(study, run, folder, data, keep, say)
        wanted = {run.key for run in (*study.rate_runs, *study.final_runs(rates))}
        left = {key for key in wanted if not (folder / "rows" / f"{key}.json").exists()}
        if not left and len(rates) == len(study.arms):
            return rows_of(folder)
        for key in sorted(left - told):
            say(_waiting(key, folder / "work" / f"{key}.claim"))
        told |= left
        time.sleep(2)


def _waiting(what: str, claim: Path) -> str:
    return f"waiting for {what}, which another process is at; if it is gone, remove {claim}"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All finished runs in a study's folder, by key, with how far the halves of the clips agreed on an arm's ranks."""
    rows = [read_json(path, "row of a study") for path in sorted((folder / "rows").glob("*.json"))]
    for row in rows:
        path = folder / f"ranks-{row['arm']}.json"
        if path.exists():
            row["agreement_of_halves"] = read_json(path, "ranks.json")["agreement_of_halves"]
    return rows


def read_results(study: Study, path: Path) -> list[dict[str, Any]]:
    """Rows of a results.jsonl, whose verdicts are those of the folder it came from. UserError for another file."""
    needed = {"final": ("test", "trained", "adapter_bytes"), "rate": ("dev",)}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            missing = {"arm", "seed", "learning_rate", *(() if "diverged" in row else needed[row["stage"]])} - set(row)
            if missing:
                raise UserError(
                    f"{path}: a row has no {' and no '.join(sorted(missing))}, from which verdicts follow: it was written by an "
                    "older version, or by hand; give the folder of the study instead"
                )
        if not {row["arm"] for row in rows} & {arm.name for arm in study.arms}:
            raise UserError(f"{path} has no row of this study's arms ({', '.join(arm.name for arm in study.arms)})")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no results.jsonl of a study: {error!r:.80}") from None
    return rows


def data_of(study: Study) -> dict[str, str]:
    """Hashes of model and data by name, after a look at all of them. Raises UserError where two sets share a clip."""
    from edgeqlora.data.agreement import read_durations, verify_apart
    from edgeqlora.data.manifest import load_for
    from edgeqlora.models.family import check_source
    from edgeqlora.models.parts import base_record
    from edgeqlora.training.training_data import fingerprint

    check_source(study.base_model)
    names = [name for name in ("train", *SETS) if getattr(study, name)]
    rows = {name: load_for("train" if name == "train" else "", getattr(study, name)) for name in names}
    replayed = {f"replay of arm {arm.name}": arm.settings["replay"] for arm in study.arms if arm.settings.get("replay")}
    every = rows | {name: load_for("train", source, "") for name, source in replayed.items()}
    for of in every.values():
        read_durations(of)
    for one, other in itertools.combinations(every, 2):
        if other in rows or one in SETS:  # what is replayed may be trained on, too
            try:
                verify_apart(every[one], every[other])
            except UserError as error:
                raise UserError(f"{one} and {other} of the study share clips: {error}") from None
    found = {name: _sha256("\n".join(sorted(map(fingerprint, of)))) for name, of in rows.items()}
    return {"base_model": _sha256(json.dumps(base_record(study.base_model), sort_keys=True)), **found}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _open(study: Study, folder: Path, data: dict[str, str]) -> None:
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    (folder / "work").mkdir(exist_ok=True)
    record = folder / "study.json"
    if not record.exists():
        write_json(record, {"schema": "edgeqlora.study/1", "fingerprint": study.fingerprint(), "data": data})
    else:
        before = read_json(record, "record of a study")
        changed = [name for name in data if before.get("data", {}).get(name) != data[name]]
        if before.get("fingerprint") != study.fingerprint():
            changed.append("tune_seed or clips")
        if changed:
            raise UserError(f"{folder} holds runs with another {' and '.join(changed)}: choose another folder with -o")


def _ranks_files(study: Study, folder: Path, say: Say) -> None:
    """ranks.json of every arm that has a plan, from one measurement for each method."""
    is_told = False
    while any(arm.plan and not _ranks_path(folder, arm).exists() for arm in study.arms):
        claim = folder / "work" / "measure.claim"
        with _claimed(claim) as is_ours:
            if is_ours:
                _write_ranks_files(study, folder, say)
                return
        if not is_told:
            say(_waiting("the measurement", claim))
        is_told = True
        time.sleep(2)
    _write_ranks_files(study, folder, say)


def _write_ranks_files(study: Study, folder: Path, say: Say) -> None:
    measured: dict[str, Measured] = {}
    for arm in study.arms:
        path = _ranks_path(folder, arm)
        if arm.plan is None:
            continue
        if path.exists():
            if {**vars(Plan()), **read_json(path, "ranks.json")["plan"]} != json.loads(json.dumps(vars(arm.plan))):
                raise UserError(f"{path} is of another plan than arm {arm.name} has: name the arm otherwise")
            continue
        terms = {name: arm.settings[name] for name in MEASURED_ON if name in arm.settings}
        key = json.dumps([terms, arm.plan.adapt], sort_keys=True)
        if key not in measured:
            method = terms.pop("method", "qlora")
            say(f"measuring the base model on {study.clips} clips ({method})")
            measured[key] = measure(
                study.base_model,
                study.train,
                arm.plan,
                n_clips=study.clips,
                method=method,
                with_spectra=True,
                say=say,
                **terms,
            )
        write_ranks(measured[key], arm.plan, path)


MEASURED_ON = (
    "method",
    "bits",
    "window_s",
    "language",
    "split",
    "limit",
    "other_script",
    "max_label_tokens",
    "speed_perturb",
)
"""Settings of an arm that decide what its base model hears."""


def _ranks_path(folder: Path, arm: Arm) -> Path:
    return folder / f"ranks-{arm.name}.json"


def _do(study: Study, run: Run, folder: Path, data: dict[str, str], keep: bool, say: Say) -> None:
    """One run, unless its row is there or another process is at it. UserError for a row of other conditions."""
    row = folder / "rows" / f"{run.key}.json"
    arm = study.arm(run.arm)
    settings = settings_of(study, run, str(_ranks_path(folder, arm)) if arm.plan else None, folder / "work" / run.key)
    given = {name: value for name, value in vars(settings).items() if value not in (None, "", [])}
    places = PLACES if arm.plan else PLACES[:-1]
    conditions = json.loads(json.dumps({name: value for name, value in given.items() if name not in places}))
    with _claimed(folder / "work" / f"{run.key}.claim") as is_ours:
        if row.exists():
            # A setting that came after this row had its default.
            before = {**_defaults(), **read_json(row, "row of a study").get("conditions", {})}
            if changed := sorted(name for name in {*before, *conditions} if before.get(name) != conditions.get(name)):
                raise UserError(
                    f"{row} was made with another {' and '.join(changed)} than arm {run.arm} has now: name the arm "
                    "otherwise, or choose another folder with -o"
                )
        if not is_ours or row.exists():
            return
        spec = folder / "work" / f"{run.key}.json"
        write_json(
            spec,
            {
                "of": {**run._asdict(), "conditions": conditions},
                "stage": run.stage,
                "settings": given,
                "dev": study.dev,
                "test": study.test,
                "canary": study.canary,
                "row": str(row),
                "keep": keep,
            },
        )
        log = spec.with_suffix(".log")
        code = run_apart(spec, log)
        if code:
            tail = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(
                f"run {run.key} ended with code {code}: {tail[-1] if tail else 'it said nothing'} (all of it: {log}); "
                "run the same command again to go on"
            )
        done = read_json(row, "row of a study")
        say(f"{run.key}: " + (f"dev loss {mean_loss(done['dev']):.4f}" if "dev" in done else "it diverged"))


def _defaults() -> dict[str, Any]:
    """What a row that does not name a setting was made with."""
    plain = {name: value for name, value in vars(TrainSettings()).items() if value not in (None, "", [])}
    return {name: value for name, value in json.loads(json.dumps(plain)).items() if name not in PLACES}


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
    """All rows as JSON lines, from which the verdicts follow (see read_results): with the sums of each speaker, or with all
    utterances where not all runs count the same ones."""
    path = folder / "results.jsonl"
    own = (*SETS, "adapter_sha256", "conditions")
    kept = [{key: value for key, value in row.items() if key not in own} for row in rows]
    counted = {name: [[(u["words"], u["tokens"]) for u in row[name]] for row in rows if name in row] for name in SETS}
    is_same = {name: all(one == of[0] for one in of) for name, of in counted.items()}
    for row, whole in zip(kept, rows, strict=True):
        for name in SETS:
            if name in whole:
                n_words = sum(u["words"] for u in whole[name])
                row[f"{name}_loss"] = round(mean_loss(whole[name]), 6)
                row[f"{name}_wer"] = round(100 * sum(u["errors"] for u in whole[name]) / max(1, n_words), 4)
                row[name] = by_speaker(whole[name]) if is_same[name] else whole[name]
    write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
    return path
