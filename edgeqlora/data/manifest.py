"""Data sets as rows: JSONL manifests (ours and NeMo's) and the choice of a reader for everything else.

Torch is never imported here, so that `edgeqlora data check` starts at once.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from edgeqlora.data import corpora, hub
from edgeqlora.data.row import Row, default_id, parse_row
from edgeqlora.errors import UserError
from edgeqlora_jetson.files import write_bytes, write_text

__all__ = ["Row", "describe_source", "evenly", "list_splits", "load_rows", "write_manifest"]

JSONL = "JSONL manifest"
JSONL_FOLDER = "folder of JSONL manifests"
NEMO = "NeMo manifest"


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
        if path.suffix == ".tsv":
            return corpora.COMMON_VOICE_FILE
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
        (corpora.is_common_voice, corpora.COMMON_VOICE),
        (lambda folder: any(folder.glob("*.jsonl")), JSONL_FOLDER),
        (corpora.is_librispeech, corpora.LIBRISPEECH),
        (hub.is_parquet_folder, hub.PARQUET),
    ):
        if is_kind(path):
            return kind
    found = ", ".join(sorted(entry.name for entry in islice(path.iterdir(), 8))) or "nothing"
    raise UserError(
        f"{source} is not a data set we read: it holds {found}. Expected one of: *.jsonl manifests; "
        "LibriSpeech (speaker/chapter/*.trans.txt); Common Voice (clips/ and train.tsv); "
        "a folder saved by Hugging Face datasets; *.parquet. "
        "Otherwise write a manifest: one JSON object a line with audio and text"
    )


def list_splits(source: str | Path) -> list[str]:
    """Names that `split` may take for this source, sorted; empty when it is one undivided set."""
    kind = describe_source(source)
    path = Path(source)
    if kind in (JSONL, NEMO):
        return sorted({fields["split"] for _, fields in _objects(path) if isinstance(fields.get("split"), str)})
    if kind == JSONL_FOLDER:
        # manifest.jsonl beside other manifests is the whole set, not one more split of it.
        names = sorted(file.stem for file in path.glob("*.jsonl") if file.stem != "manifest")
        return names or list_splits(path / "manifest.jsonl")
    if kind in (corpora.COMMON_VOICE, corpora.COMMON_VOICE_FILE, corpora.LIBRISPEECH):
        return corpora.list_splits(path, kind)
    return hub.list_splits(str(source), kind)


def write_manifest(rows: Sequence[Row], path: str | Path) -> Path:
    """Write rows as our JSONL, whole or not at all; audio paths are relative to the manifest.

    Audio that exists only in memory is written to `<manifest name>-audio/` beside it.
    """
    path = Path(path)
    folder = Path(os.path.abspath(path)).parent
    lines = []
    for index, row in enumerate(rows):
        if row.audio_bytes is None:
            audio = os.path.relpath(row.audio, folder)
        else:
            audio = f"{path.stem}-audio/{index:06d}{_suffix(row.audio_bytes)}"
            write_bytes(str(folder / audio), row.audio_bytes)
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
    if kind in (JSONL, NEMO):
        return _read_jsonl(path, split)
    if kind == JSONL_FOLDER:
        return _read_jsonl_folder(path, split)
    if kind in (corpora.COMMON_VOICE, corpora.COMMON_VOICE_FILE):
        return corpora.read_common_voice(path, split)
    if kind == corpora.LIBRISPEECH:
        return corpora.read_librispeech(path, split)
    return hub.read_dataset(source, kind, split)


def _read_jsonl(path: Path, split: str | None) -> Iterator[Row]:
    folder = os.path.dirname(os.path.abspath(path))
    for where, fields in _objects(path):
        if split is None or fields.get("split") == split:
            yield parse_row(fields, where, folder)


def _read_jsonl_folder(path: Path, split: str | None) -> Iterator[Row]:
    if split is not None and (path / f"{split}.jsonl").is_file():
        return _read_jsonl(path / f"{split}.jsonl", None)
    files = sorted(path.glob("*.jsonl"))
    if split is None and len(files) > 1:
        raise UserError(f"{path} holds several splits: choose one of {', '.join(list_splits(path))}")
    return _read_jsonl(files[0] if len(files) == 1 else path / "manifest.jsonl", split)


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
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8 text: is this a manifest? Expected one JSON object a line") from None
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "too long or too deep"
        raise UserError(
            f"{where}: broken JSON ({reason}): expected one JSON object a line, "
            'such as {"audio": "clips/1.wav", "text": "hello"}'
        ) from None
    if not isinstance(value, dict):
        kind = "array" if isinstance(value, list) else type(value).__name__
        raise UserError(f"{where}: expected one JSON object a line, found a JSON {kind}")
    return value


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
