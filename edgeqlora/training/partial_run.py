"""The folder of an unfinished run: its settings, log and checkpoints, beside the output it will become."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora.settings import TrainSettings, make_settings, read_settings, write_settings
from edgeqlora.training import checkpoint
from edgeqlora_jetson.files import read_json, write_json

CONFIG = "train.toml"
SOURCES = "sources.json"


def partial_folder(output: Path) -> Path:
    """Where a run keeps its checkpoints until it is done: beside its output."""
    return output.parent / f"{output.name}.partial"


def verify_output(settings: TrainSettings, output: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse, before anything heavy, an output that would be lost, or a resume without a run to go on with."""
    partial = partial_folder(output)
    if output.exists() and not overwrite and (not output.is_dir() or any(output.iterdir())):
        done = " (a finished run)" if (output / "card.json").exists() else ""
        raise UserError(f"output={str(output)!r} exists{done}: choose another folder, or pass --overwrite")
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
        changed = [name for name in sources if before.get(name) != sources[name]]
        if changed:
            raise UserError(
                f"--resume, but {' and '.join(changed)} changed since the unfinished run in {partial}: "
                "put back what it was, or --overwrite to start anew"
            )
        return checkpoint.last_complete(partial)
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"output={str(output)!r} cannot be written: {error.strerror}") from error
    write_json(partial / SOURCES, sources)
    write_settings(settings, partial / CONFIG)
    return None


def _same_settings(settings: TrainSettings, partial: Path) -> None:
    before = dataclasses.asdict(make_settings(read_settings(partial / CONFIG)))
    now = dataclasses.asdict(settings)
    # These may be written differently, or moved; their content is compared by hash in open_partial.
    free = ("base_model", "train", "dev", "output", "noise", "room", "cache", "workers")
    for name in before:
        if name not in free and before[name] != now[name]:
            raise UserError(
                f"--resume with {name}={now[name]!r}, but the unfinished run has {before[name]!r}: "
                "give the same settings, or --overwrite to start anew"
            )
