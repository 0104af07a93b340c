"""Data sets as rows: JSONL manifests (ours and NeMo's), the choice of a reader for everything else, and of a split.

Torch is never imported here, so that `edgeqlora data check` starts at once.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from edgeqlora.data.row import Row, default_id, parse_row
from edgeqlora.data.sources import corpora, hub, tables
from edgeqlora.errors import UserError
from edgeqlora_jetson.files import parse_json, write_bytes, write_text

__all__ = ["Row", "describe_source", "evenly", "list_splits", "load_for", "load_rows", "write_manifest"]

JSONL = "JSONL manifest"
JSONL_FOLDER = "folder of JSONL manifests"
NEMO = "NeMo manifest"
WHOLE = "manifest"
"""Name of a file that holds the whole set, beside files of one split each."""
FILES = (JSONL, NEMO, tables.TABLE)
FOLDERS: dict[str, Callable[[Path], dict[str, Path]]] = {
    JSONL_FOLDER: lambda folder: {f.stem: f for f in sorted(folder.glob("*.jsonl")) if f.name != "metadata.jsonl"},
    tables.AUDIO_FOLDER: tables.metadata_of,
    corpora.COMMON_VOICE: corpora.common_voice_tables,
}
"""Kinds of folders, and their files by split."""
ROLES = {
    "train": ("train", "training"),
    "dev": ("dev", "development", "eval", "valid", "validation", "val"),
    "test": ("test", "testing", "evaluation"),
}
"""What data is for, and how the names of splits for it begin: `train-clean-100` and `train.other` are for training."""


def load_for(role: str, source: str | Path, split: str | None = None, limit: int | None = None) -> list[Row]:
    """Rows of a source that are for `role` (a key of ROLES, or "" for a use that any one split is right for).

    split: take this one, or several with commas between, whatever they are called. A source without splits is taken
    whole; of one with splits, those whose names are for the role, or its only one if that is for no other role.

    Raises UserError as `load_rows` does, and where the splits give no answer.
    """
    if split:
        names = [name.strip() for name in split.split(",")]
    else:
        inside = list_splits(source)
        if not inside:
            return load_rows(source, limit=limit)
        names = [name for name in inside if role and role_of(name) == role]
        if not names and len(inside) == 1 and (not role or not role_of(inside[0])):
            names = inside
        if not names:
            flag = "--dev-split" if role == "dev" else "--split"
            wanted = f", none of them for {role}" if role else ""
            raise UserError(f"{source} has the splits {', '.join(inside)}{wanted}: choose with {flag}")
    rows: list[Row] = []
    for name in names:
        if limit is None or len(rows) < limit:
            rows += load_rows(source, name, None if limit is None else limit - len(rows))
    return rows


def role_of(split: str) -> str:
    """What a split is for by its name: train, dev, test, or "" where the name does not say."""
    begins = re.split(r"[^a-z]", split.lower())[0]
    return next((role for role, names in ROLES.items() if begins in names), "")


def load_rows(source: str | Path, split: str | None = None, limit: int | None = None) -> list[Row]:
    """Read a data set: a manifest file, a corpus folder or `hf:owner/name[:config]`.

    `split` picks one split of a source that has several (see `list_splits`); `limit` keeps the first rows
    only. Audio files are not opened: `edgeqlora.data.check.run` does that.

    Raises UserError when the source is missing, empty, of no known format, or holds a broken row.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit={limit} must be 1 or more: leave it out to read every row")
    kind = describe_source(source)
    if split is not None:
        _verify_split(source, split)
    rows = list(islice(_read(str(source), kind, split), limit))
    if not rows:
        of_split = f" (split {split})" if split else ""
        raise UserError(f"{source}{of_split} holds no rows: a {kind} needs at least one utterance")
    return rows


def evenly(rows: list[Row], wanted: int) -> list[Row]:
    """`wanted` rows spread evenly over the set (sets are often sorted by speaker or text); 0: all."""
    if not wanted or wanted >= len(rows):
        return rows
    return [rows[i * len(rows) // wanted] for i in range(wanted)]


def describe_source(source: str | Path) -> str:
    """Name the format of a source, e.g. `NeMo manifest`; UserError when it is none that we read."""
    if str(source).startswith(hub.PREFIX):
        return hub.HUB_NAME
    path = Path(source)
    if path.is_file():
        if tables.is_table(path):
            return tables.TABLE
        if path.suffix == ".parquet":
            return hub.PARQUET
        first = next(_objects(path), None)
        return NEMO if first and "audio_filepath" in first[1] and "audio" not in first[1] else JSONL
    if not path.is_dir():
        raise UserError(
            f"data set {source} does not exist: give a manifest file, a corpus folder, "
            f"or {hub.PREFIX}owner/name for a data set on the Hugging Face hub"
        )
    for is_kind, kind in (
        (hub.is_saved_dataset, hub.SAVED),
        (corpora.common_voice_tables, corpora.COMMON_VOICE),
        (FOLDERS[JSONL_FOLDER], JSONL_FOLDER),
        (tables.metadata_of, tables.AUDIO_FOLDER),
        (corpora.is_librispeech, corpora.LIBRISPEECH),
        (hub.is_parquet_folder, hub.PARQUET),
    ):
        if is_kind(path):
            return kind
    found = ", ".join(sorted(entry.name for entry in islice(path.iterdir(), 8))) or "nothing"
    raise UserError(
        f"{source} is not a data set we read: it holds {found}. Expected one of: *.jsonl manifests; "
        "LibriSpeech (speaker/chapter/*.trans.txt); Common Voice (clips/ and train.tsv); audio with metadata.csv; "
        "a folder saved by Hugging Face datasets; *.parquet. "
        "Otherwise write a manifest: one JSON object a line with audio and text"
    )


def list_splits(source: str | Path) -> list[str]:
    """Names that `split` may take for this source, sorted; empty when it is one undivided set."""
    kind = describe_source(source)
    path = Path(source)
    if kind in FILES:
        return _named_splits(path, (split for split, _ in _rows_of_file(path, kind)))
    if kind in FOLDERS:
        files = FOLDERS[kind](path)
        return list_splits(files[WHOLE]) if list(files) == [WHOLE] else sorted(name for name in files if name != WHOLE)
    if kind == corpora.LIBRISPEECH:
        return corpora.librispeech_subsets(path)
    return hub.list_splits(str(source), kind)


def _named_splits(path: Path, splits: Iterable[str]) -> list[str]:
    """The splits that rows name, sorted; UserError where some rows name one and others none."""
    counts = Counter(splits)
    if "" in counts and len(counts) > 1:
        raise UserError(
            f"{path}: {counts['']} of {sum(counts.values())} rows have no split, the others have: give each row one, or none"
        )
    return sorted(filter(None, counts))


def write_manifest(rows: Sequence[Row], path: str | Path) -> Path:
    """Write rows as our JSONL, whole or not at all; audio paths are relative to the manifest.

    Audio that exists only in memory is written to `<manifest name>-audio/` beside it.
    """
    path = Path(path)
    folder = Path(os.path.abspath(path)).parent
    lines = []
    for index, row in enumerate(rows):
        if row.read_bytes is None:
            audio = os.path.relpath(row.audio, folder)
        else:
            content = row.read_bytes()
            audio = f"{path.stem}-audio/{index:06d}{_suffix(content)}"
            write_bytes(str(folder / audio), content)
        fields: dict[str, Any] = {"audio": audio, "text": row.text}
        for field in ("duration", "speaker", "language", "start", "end"):
            if getattr(row, field) is not None:
                fields[field] = getattr(row, field)
        if row.id and row.id != default_id(audio, row.start, row.end):
            fields["id"] = row.id
        lines.append(json.dumps(fields, ensure_ascii=False) + "\n")
    write_text(str(path), "".join(lines))
    return path


def _read(source: str, kind: str, split: str | None) -> Iterator[Row]:
    path = Path(source)
    if kind in FILES:
        return (row for of_split, row in _rows_of_file(path, kind) if split is None or of_split == split)
    if kind in FOLDERS:
        return _read_folder(path, FOLDERS[kind](path), split)
    if kind == corpora.LIBRISPEECH:
        return corpora.read_librispeech(path, split)
    return hub.read_dataset(source, kind, split)


def _rows_of_file(path: Path, kind: str) -> Iterator[tuple[str, Row]]:
    """(split or "", row) of each line of a manifest or table."""
    if kind == tables.TABLE:
        yield from tables.read_table(path)
        return
    folder = os.path.dirname(os.path.abspath(path))
    for where, fields in _objects(path):
        split = fields.get("split") or ""
        if not isinstance(split, str):
            raise UserError(
                f'{where}: field "split" must be text, but is {split!r:.60}: write "train", "dev" or "test"'
            )
        yield split, parse_row(fields, where, folder)


def _read_folder(path: Path, files: dict[str, Path], split: str | None) -> Iterator[Row]:
    """Rows of a folder in which each split is a file, or one file holds all of them."""
    if split is None and len(files) > 1:
        raise UserError(f"{path} holds several splits: choose one of {', '.join(list_splits(path))}")
    if split not in files and split is not None:
        yield from _read(str(files[WHOLE]), describe_source(files[WHOLE]), split)
        return
    file = files[split] if split is not None else next(iter(files.values()))
    for of_split, row in _rows_of_file(file, describe_source(file)):
        if split is not None and of_split and role_of(of_split) != role_of(split):
            raise UserError(f"{row.name} says split {of_split} in {file}, the file of split {split}: correct the row")
        yield row


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (`file:line`, object) for every line that is not blank."""
    try:
        with open(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{path}:{number}", parse_object(line, f"{path}:{number}")
    except OSError as error:
        raise UserError(f"cannot read manifest {path}: {error.strerror}") from None


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """Parse one manifest line; UserError naming file and line unless it is one JSON object in UTF-8."""
    try:
        value = parse_json(line.decode("utf-8-sig"), object_pairs_hook=partial(_once, where))
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8 text: is this a manifest? Expected one JSON object a line") from None
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise UserError(
            f"{where}: broken JSON ({reason}): expected one JSON object a line, "
            'such as {"audio": "clips/1.wav", "text": "hello"}'
        ) from None
    if not isinstance(value, dict):
        kind = "array" if isinstance(value, list) else type(value).__name__
        raise UserError(f"{where}: expected one JSON object a line, found a JSON {kind}")
    return value


def _once(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = next(name for name, n in Counter(name for name, _ in pairs).items() if n > 1)
        raise UserError(f'{where}: field "{twice}" is there twice: keep one of them')
    return fields


def _verify_split(source: str | Path, split: str) -> None:
    names = list_splits(source)
    if split in names:
        return
    if not names:
        raise UserError(f"{source} has no splits, so split={split} cannot be chosen: leave it out to read every row")
    near = difflib.get_close_matches(split, names, n=1, cutoff=0.5)
    hint = f". Did you mean {near[0]}?" if near else ""
    raise UserError(f"{source} has no split {split}: choose one of {', '.join(names)}{hint}")


def _suffix(audio_bytes: bytes) -> str:
    magic = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}
    return magic.get(audio_bytes[:4], ".mp3")
