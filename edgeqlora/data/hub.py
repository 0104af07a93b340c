"""Hugging Face data sets: folders saved by `datasets`, parquet folders, and names on the hub.

Audio is never decoded by `datasets` (that needs torchcodec and FFmpeg): with `Audio(decode=False)` it comes
as a path or as the bytes of a file, which soundfile reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeqlora.data.row import SYNONYMS, Row, missing_field
from edgeqlora.errors import UserError

PREFIX = "hf:"
HUB_NAME = "Hugging Face hub data set"
SAVED = "Hugging Face data set folder"
PARQUET = "parquet files"
INSTALL = 'pip install "edgeqlora[hub]"'


def is_saved_dataset(folder: Path) -> bool:
    """True for the layout of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def is_parquet_folder(folder: Path) -> bool:
    """True if parquet files lie in this folder or one level below (`data/train-00000-of-00002.parquet`)."""
    return bool(_parquet_files(folder))


def list_splits(source: str, kind: str) -> list[str]:
    """Splits of a Hugging Face source; a hub name is asked over the network."""
    if kind == PARQUET:
        return sorted(_parquet_files(Path(source)))
    datasets = load_datasets()
    if kind == SAVED:
        if not (Path(source) / "dataset_dict.json").is_file():
            return []
        return sorted(_attempt(source, lambda: datasets.load_from_disk(source)))
    name, config = parse_hub_name(source)
    return sorted(_attempt(source, lambda: datasets.get_dataset_split_names(name, config)))


def read_dataset(source: str, kind: str, split: str | None) -> Iterator[Row]:
    """Rows of a Hugging Face source. Bytes of embedded audio stay in memory for as long as the row does."""
    if split is None:
        names = list_splits(source, kind)
        if len(names) > 1:
            raise UserError(f"{source} holds several splits: choose one of {', '.join(names)}")
        split = names[0] if names else None
    records = _parquet_records(source, split) if kind == PARQUET else _dataset_records(source, kind, split)
    columns: tuple[str, str] | None = None
    for index, record in enumerate(records):
        where = f"{source}#{split}/{index}" if split else f"{source}#{index}"
        if columns is None:
            columns = _column("audio", record, source), _column("text", record, source)
        yield parse_record(record, columns[0], columns[1], where, source)


def parse_record(record: Mapping[str, Any], audio_column: str, text_column: str, where: str, source: str) -> Row:
    """Turn one record (audio as `{"bytes", "path"}`, as bytes, or as a path) into a `Row`.

    Raises UserError when the audio or the text of the record is of another type.
    """
    audio, text = record[audio_column], record[text_column]
    audio_bytes: bytes | None = None
    path: Any = audio
    if isinstance(audio, Mapping):
        audio_bytes, path = audio.get("bytes"), audio.get("path")
    elif isinstance(audio, bytes):
        audio_bytes, path = audio, None
    if audio_bytes is None and not (isinstance(path, str) and path):
        raise UserError(f'{where}: column "{audio_column}" holds neither audio bytes nor a path, but {audio!r:.60}')
    if not isinstance(text, str):
        raise UserError(f'{where}: column "{text_column}" must be text, but is {text!r:.60}')
    if audio_bytes is None:
        name = os.path.normpath(os.path.join(os.path.abspath(source), path))
    else:
        name = f"{where} {os.path.basename(path)}" if path else where
    speaker = next((record[key] for key in ("speaker", "speaker_id", "client_id") if record.get(key) is not None), None)
    language = next((record[key] for key in ("language", "locale") if isinstance(record.get(key), str)), None)
    return Row(
        audio=name,
        text=text,
        speaker=None if speaker is None else str(speaker),
        language=language or None,
        audio_bytes=audio_bytes,
        id=str(record.get("id") or where),
    )


def parse_hub_name(source: str) -> tuple[str, str | None]:
    """Split `hf:owner/name[:config]` into name and config."""
    name, _, config = source[len(PREFIX) :].partition(":")
    if not name or name.count("/") > 1 or name.startswith("/"):
        raise UserError(f"{source!r} is not a hub name: expected {PREFIX}owner/name or {PREFIX}owner/name:config")
    return name, config or None


def load_datasets() -> Any:
    """Import the optional library `datasets`; UserError with the command that installs it."""
    from edgeqlora.hub_access import stay_offline_without_network

    stay_offline_without_network()
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"reading Hugging Face data sets needs the library datasets ({error}): run {INSTALL}") from None
    return datasets


def _dataset_records(source: str, kind: str, split: str | None) -> Iterator[Mapping[str, Any]]:
    datasets = load_datasets()
    if kind == SAVED:
        dataset = _attempt(source, lambda: datasets.load_from_disk(source))
        dataset = dataset[split] if split else dataset
    else:
        name, config = parse_hub_name(source)
        dataset = _attempt(source, lambda: datasets.load_dataset(name, config, split=split))
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Audio):
            dataset = dataset.cast_column(column, datasets.Audio(decode=False))
    return iter(dataset)


def _parquet_files(source: Path) -> dict[str, list[Path]]:
    """Parquet files by split: `train-00000-of-00002.parquet` and `train/0000.parquet` are both `train`."""
    if source.is_file():
        return {source.stem.split("-")[0]: [source]}
    splits: dict[str, list[Path]] = {}
    for path in sorted([*source.glob("*.parquet"), *source.glob("*/*.parquet")]):
        name = path.stem.split("-")[0]
        name = path.parent.name if name.isdigit() else name
        splits.setdefault(name, []).append(path)
    return splits


def _parquet_records(source: str, split: str | None) -> Iterator[Mapping[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"reading parquet needs pyarrow ({error}): run {INSTALL}") from None
    for path in _parquet_files(Path(source))[split or ""]:
        with _attempt(str(path), lambda path=path: parquet.ParquetFile(path)) as file:
            for batch in file.iter_batches(batch_size=64):
                yield from batch.to_pylist()


def _column(field: str, record: Mapping[str, Any], source: str) -> str:
    for name in (field, *SYNONYMS[field]):
        if name in record:
            return name
    raise missing_field(field, record, source)


def _attempt(source: str, action: Any) -> Any:
    """Run one call of the libraries; what they raise (no common base) becomes a UserError."""
    try:
        return action()
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise UserError(
            f"cannot read data set {source}: {type(error).__name__}: {reason}. "
            "Check the name, the split and, for a hub name, the network"
        ) from error
