"""The folder of an unfinished run: its settings, log and checkpoints, beside the output it will become."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeqlora.data.row import Row
from edgeqlora.errors import UserError
from edgeqlora.settings import TrainSettings, make_settings, read_settings, write_settings
from edgeqlora.training import checkpoint
from edgeqlora_jetson.files import read_json, sha256_file, verify_replaceable, write_json

CONFIG = "train.toml"
SOURCES = "sources.json"


def partial_folder(output: Path) -> Path:
    """Where a run keeps its checkpoints until it is done: beside its output."""
    return output.parent / f"{output.name}.partial"


def inputs_of(settings: TrainSettings) -> list[str]:
    """Paths (and names) that a run reads: an output that holds one of them is not replaced."""
    return [
        settings.base_model,
        settings.train,
        settings.dev,
        settings.noise,
        settings.room,
        settings.canary,
        settings.replay,
        settings.ranks,
    ]


def data_hashes(settings: TrainSettings, rows: Mapping[str, Sequence[Row]]) -> dict[str, str | None]:
    """What tells whether a resumed run has the same data: hashes by the name of the setting; None for what is not given.

    rows: of train, dev, noise and room. A manifest and ranks.json count with every byte; folders and hub data sets with
    their rows: texts, cuts, names of the audio files. NAME_audio: names, sizes and times of modification of the audio
    files, so that hours of speech need not be read; a copy must keep the times (cp -a, rsync -a).
    """
    hashes: dict[str, str | None] = {}
    for name, of in rows.items():
        source = getattr(settings, name)
        lines = [repr((Path(row.audio).name, row.text, row.start, row.end)) for row in of]
        hashes[name] = sha256_file(source) if os.path.isfile(source) else sha256_lines(lines)
        hashes[f"{name}_audio"] = sha256_lines([_stamp(row.audio) for row in of])
    hashes["ranks"] = sha256_file(settings.ranks) if os.path.isfile(settings.ranks) else None
    return hashes


def sha256_lines(lines: Sequence[str]) -> str | None:
    """Hash of the lines; None of none."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest() if lines else None


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return Path(path).name  # audio inside a table
    return repr((Path(path).name, status.st_size, status.st_mtime_ns))


def verify_output(settings: TrainSettings, output: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse, before anything heavy, an output that would be lost, or a resume without a run to go on with."""
    partial = partial_folder(output)
    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        done = " (a finished run)" if (output / "card.json").exists() else ""
        raise UserError(f"output={str(output)!r} exists{done}: choose another folder, or pass --overwrite")
    if output.is_dir():
        verify_replaceable(output, inputs_of(settings))
    if resume:
        if not (partial / CONFIG).exists():
            raise UserError(
                f"nothing to resume: {partial} does not exist (it holds the checkpoints of an unfinished run)"
            )
        _same_settings(settings, partial)
    elif checkpoint.last_complete(partial) and not overwrite:
        raise UserError(f"an unfinished run is in {partial}: pass --resume to go on, or --overwrite to start anew")


def open_partial(settings: TrainSettings, output: Path, sources: dict[str, Any], *, resume: bool) -> Path | None:
    """Make the folder of checkpoints anew, or with `resume` return the checkpoint to go on from (None: the start).

    sources: hashes of base model and data. Raises UserError if those of the unfinished run are others.
    """
    partial = partial_folder(output)
    if resume:
        before = read_json(partial / SOURCES, "record of an unfinished run")
        changed = [name.replace("_", " ") for name in sources if before.get(name) != sources[name]]
        if changed:
            raise UserError(
                f"--resume, but {' and '.join(changed)} changed since the unfinished run in {partial}: "
                "put back what it was, or --overwrite to start anew"
            )
        return checkpoint.last_complete(partial)
    if partial.exists() and not (partial / CONFIG).exists() and (not partial.is_dir() or any(partial.iterdir())):
        raise UserError(
            f"{partial}, where checkpoints go, holds something else: choose another output, or move it away"
        )
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"output={str(output)!r} cannot be written: {error.strerror}") from error
    write_settings(settings, partial / CONFIG)
    write_json(partial / SOURCES, sources)
    return None


def _same_settings(settings: TrainSettings, partial: Path) -> None:
    before = dataclasses.asdict(make_settings(read_settings(partial / CONFIG)))
    now = dataclasses.asdict(settings)
    # These may be written differently, or moved; their content is compared by hash in open_partial.
    free = [
        "base_model",
        "train",
        "dev",
        "output",
        "noise",
        "room",
        "canary",
        "replay",
        "cache",
        "cache_gib",
        "workers",
    ]
    if os.path.isfile(settings.ranks):
        free.append("ranks")
    for name in before:
        if name not in free and before[name] != now[name]:
            raise UserError(
                f"--resume with {name}={now[name]!r}, but the unfinished run has {before[name]!r}: "
                "give the same settings, or --overwrite to start anew"
            )
