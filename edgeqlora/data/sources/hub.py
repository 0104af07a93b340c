"""Hugging Face data sets: folders saved by `datasets`, parquet folders, and names on the hub.

Audio is never decoded by `datasets` (that needs torchcodec and FFmpeg): with `Audio(decode=False)` it comes
as a path or as the bytes of a file, which soundfile reads.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edgeqlora.data.row import NAMES, Row, parse_row
from edgeqlora.errors import UserError

PREFIX = "hf:"
HUB_NAME = "Hugging Face hub data set"
SAVED = "Hugging Face data set folder"
PARQUET = "parquet files"
INSTALL = "pip install datasets"


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
    """Rows of a Hugging Face source; embedded audio stays on the disk until it is read."""
    if split is None:
        names = list_splits(source, kind)
        if len(names) > 1:
            raise UserError(f"{source} holds several splits: choose one of {', '.join(names)}")
        split = names[0] if names else None
    dataset = _open_dataset(source, kind, split)
    for index, record in enumerate(dataset):
        where = f"{source}#{split}/{index}" if split else f"{source}#{index}"
        dropped = _dropped(record)
        kept = {name: value for name, value in record.items() if name not in dropped and name != "duration"}
        row = parse_row(kept, where, os.path.abspath(source), default_name=where)
        if row.read_bytes is not None:
            column = next(name for name in NAMES["audio"] if name in record)
            row = dataclasses.replace(row, read_bytes=partial(_read_audio, dataset, index, column))
        yield dataclasses.replace(row, unread=row.unread + dropped)


def _read_audio(dataset: Any, index: int, column: str) -> bytes:
    """The audio of one record, read from the disk when it is wanted."""
    value = dataset.select_columns(column)[index][column]
    content: bytes = value if isinstance(value, bytes) else value["bytes"]
    return content


def _dropped(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Columns that mean something in a manifest and are not read here, as nobody can edit these sets.

    Of several texts the first by row.NAMES counts. Times tell where the clip was in a recording that is not there.
    """
    texts = [name for name in NAMES["text"] if name in record]
    return tuple(name for name in (*texts[1:], *NAMES["start"], *NAMES["end"]) if name in record)


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


def _open_dataset(source: str, kind: str, split: str | None) -> Any:
    """The set of one split, memory-mapped by the library, audio as the bytes of a file."""
    datasets = load_datasets()
    if kind == PARQUET:
        files = [str(path) for path in _parquet_files(Path(source))[split or ""]]
        dataset = _attempt(source, lambda: datasets.Dataset.from_parquet(files))
    elif kind == SAVED:
        dataset = _attempt(source, lambda: datasets.load_from_disk(source))
        dataset = dataset[split] if split else dataset
    else:
        name, config = parse_hub_name(source)
        dataset = _attempt(source, lambda: datasets.load_dataset(name, config, split=split))
    for column, feature in dataset.features.items():
        if isinstance(feature, datasets.Audio):
            dataset = dataset.cast_column(column, datasets.Audio(decode=False))
    return dataset


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
