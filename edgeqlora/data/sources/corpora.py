"""Speech corpora as they come from their archives: LibriSpeech folders and Common Voice releases."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from edgeqlora.data.row import Row
from edgeqlora.errors import UserError

LIBRISPEECH = "LibriSpeech folder"
COMMON_VOICE = "Common Voice folder"

# The tables of a Common Voice release that list clips with sentences.
COMMON_VOICE_SPLITS = ("dev", "invalidated", "other", "test", "train", "validated")
# A chapter folder, a speaker, a split, the whole corpus: the transcripts lie at most this deep.
LIBRISPEECH_DEPTHS = ("*.trans.txt", "*/*.trans.txt", "*/*/*.trans.txt", "*/*/*/*.trans.txt")


def is_librispeech(folder: Path) -> bool:
    """True if transcripts in LibriSpeech's layout lie in this folder."""
    return any(next(folder.glob(pattern), None) is not None for pattern in LIBRISPEECH_DEPTHS)


def common_voice_tables(folder: Path) -> dict[str, Path]:
    """The tables of a release by split, sorted."""
    return {name: path for name in COMMON_VOICE_SPLITS if (path := folder / f"{name}.tsv").is_file()}


def librispeech_subsets(folder: Path) -> list[str]:
    """Subsets such as `dev-clean`, sorted; none for a folder inside one."""
    return sorted({found.relative_to(folder).parts[0] for found in folder.glob(LIBRISPEECH_DEPTHS[3])})


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
