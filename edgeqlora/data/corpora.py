"""Speech corpora as they come from their archives: LibriSpeech folders and Common Voice tables."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path

from edgeqlora.data.row import Row, missing_field
from edgeqlora.errors import UserError

LIBRISPEECH = "LibriSpeech folder"
COMMON_VOICE = "Common Voice folder"
COMMON_VOICE_FILE = "Common Voice table"

# The tables of a Common Voice release that list clips with sentences.
COMMON_VOICE_SPLITS = ("dev", "invalidated", "other", "test", "train", "validated")
# A chapter folder, a speaker, a split, the whole corpus: the transcripts lie at most this deep.
LIBRISPEECH_DEPTHS = ("*.trans.txt", "*/*.trans.txt", "*/*/*.trans.txt", "*/*/*/*.trans.txt")


def is_librispeech(folder: Path) -> bool:
    """True if transcripts in LibriSpeech's layout lie in this folder."""
    return any(next(folder.glob(pattern), None) is not None for pattern in LIBRISPEECH_DEPTHS)


def is_common_voice(folder: Path) -> bool:
    """True if this folder holds at least one of Common Voice's tables."""
    return any((folder / f"{name}.tsv").is_file() for name in COMMON_VOICE_SPLITS)


def list_splits(path: Path, kind: str) -> list[str]:
    """Splits of a corpus: the tables of Common Voice, or LibriSpeech's subsets such as `dev-clean`."""
    if kind == COMMON_VOICE:
        return [name for name in COMMON_VOICE_SPLITS if (path / f"{name}.tsv").is_file()]
    if kind == LIBRISPEECH:
        return sorted({found.relative_to(path).parts[0] for found in path.glob(LIBRISPEECH_DEPTHS[3])})
    return []


def read_librispeech(folder: Path, split: str | None) -> Iterator[Row]:
    """Rows of `speaker/chapter/*.trans.txt` (one `id TEXT` a line) with the audio beside it.

    Source of the layout: https://www.openslr.org/12
    """
    root = folder / split if split else folder
    transcripts = sorted(path for pattern in LIBRISPEECH_DEPTHS for path in root.glob(pattern))
    for transcript in transcripts:
        chapter = os.path.abspath(transcript.parent)
        try:
            lines = transcript.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read transcript {transcript}: {error}") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            name, _, text = line.strip().partition(" ")
            speaker, dash, _ = name.partition("-")
            if not dash:
                raise UserError(f'{transcript}:{number}: expected "speaker-chapter-number TEXT", found {line[:60]!r}')
            audio = next(
                (path for suffix in (".flac", ".wav") if os.path.isfile(path := os.path.join(chapter, name + suffix))),
                os.path.join(chapter, name + ".flac"),
            )
            yield Row(audio=audio, text=text.strip(), speaker=speaker, id=name)


def read_common_voice(path: Path, split: str | None) -> Iterator[Row]:
    """Rows of a Common Voice table: columns `path` and `sentence`, optional `client_id` and `locale`.

    `path` is a release folder (then `split` picks the table) or one .tsv file. Clips are looked for in
    `clips/` beside the table, else beside the table itself.
    """
    if path.is_dir():
        names = list_splits(path, COMMON_VOICE)
        if split is None and len(names) > 1:
            raise UserError(f"{path} holds several splits: choose one of {', '.join(names)}")
        path = path / f"{split or names[0]}.tsv"
    folder = os.path.dirname(os.path.abspath(path))
    clips = os.path.join(folder, "clips")
    clips = clips if os.path.isdir(clips) else folder
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            # Sentences hold unpaired quotation marks, so quotes mean nothing in these tables.
            table = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
            columns = table.fieldnames or []
            for column in ("path", "sentence"):
                if column not in columns:
                    raise missing_field(column, columns, f"{path}:1")
            for record in table:
                if not record["path"] or record["sentence"] is None:
                    raise UserError(f"{path}:{table.line_num}: row has too few columns: expected {len(columns)}")
                yield Row(
                    audio=os.path.normpath(os.path.join(clips, record["path"])),
                    text=record["sentence"],
                    speaker=record.get("client_id") or None,
                    language=record.get("locale") or None,
                    id=record["path"],
                )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read table {path}: {error}") from None
