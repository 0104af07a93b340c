"""One utterance of a data set: where its audio is and what was said."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeqlora.errors import UserError

# Names other tools use for our two required fields, most common first.
SYNONYMS = {
    "audio": (
        "audio_filepath",
        "file_name",
        "path",
        "file",
        "filename",
        "audio_path",
        "wav",
        "wav_path",
        "url",
    ),
    "text": ("sentence", "transcription", "transcript", "normalized_text", "raw_text", "label", "txt"),
}


@dataclass(frozen=True)
class Row:
    """One utterance; the audio may be a whole file, a cut of it, or bytes that are already in memory."""

    audio: str
    """Absolute path of the audio file; for `audio_bytes`, a name to show in messages."""
    text: str
    """What was said, as written in the data set."""
    duration: float | None = None
    """Seconds of this utterance (after the cut by `start` and `end`), as the data set claims."""
    speaker: str | None = None
    """Speaker name, to tell whether two splits share a voice."""
    language: str | None = None
    """Language code such as `en`."""
    start: float | None = None
    """Seconds into the file where the utterance starts; None is the beginning."""
    end: float | None = None
    """Seconds into the file where it ends; None is the end of the file."""
    audio_bytes: bytes | None = None
    """Encoded audio (a whole wav, flac, ogg or mp3 file) when the data set holds it instead of a path."""
    id: str = ""
    """Name of the utterance, unique within its data set."""

    @property
    def name(self) -> str:
        """File name for messages: path (relative to the working folder where shorter) and the cut, if any."""
        relative = os.path.relpath(self.audio) if self.audio_bytes is None else self.audio
        shown = self.audio if relative.startswith("..") else relative
        if self.start is None and self.end is None:
            return shown
        end = "end" if self.end is None else f"{self.end:g}"
        return f"{shown} [{self.start or 0:g} to {end} s]"


def parse_row(fields: Mapping[str, Any], where: str, folder: str) -> Row:
    """Turn one manifest object, ours or NeMo's, into a `Row`.

    `where` (`file:line`) begins every error; relative audio paths are taken from `folder`. NeMo writes
    `audio_filepath`, and `offset` with `duration` for a cut of a longer file.

    Raises UserError for a missing field, a wrong type, or a cut that holds no audio.
    """
    audio_field = "audio_filepath" if "audio_filepath" in fields and "audio" not in fields else "audio"
    audio = _text(fields, audio_field, where)
    if not audio.strip() or "\0" in audio:
        raise UserError(f"{where}: {audio_field}={audio!r} is not a file name: give the path of an audio file")
    text = _text(fields, "text", where)
    duration = _seconds(fields, "duration", where)
    start, end = _seconds(fields, "start", where), _seconds(fields, "end", where)
    if audio_field == "audio_filepath" and start is None:
        start = _seconds(fields, "offset", where)
        if start is not None and end is None and duration is not None:
            end = start + duration
    if end is not None and end <= (start or 0.0):
        raise UserError(
            f"{where}: end={end:g} must be greater than start={start or 0:g} (seconds into the file): "
            "correct the row or leave both out to use the whole file"
        )
    if duration is None and end is not None:
        duration = end - (start or 0.0)
    return Row(
        audio=os.path.normpath(os.path.join(folder, audio)),
        text=text,
        duration=duration,
        speaker=_name(fields, "speaker", where),
        language=_name(fields, "language", where) or _name(fields, "lang", where),
        start=start,
        end=end,
        id=_name(fields, "id", where) or default_id(audio, start, end),
    )


def default_id(audio: str, start: float | None, end: float | None) -> str:
    """Name of an utterance that has none: the path as the manifest writes it, and the cut."""
    if start is None and end is None:
        return audio
    return f"{audio}@{start or 0:g}-{'' if end is None else format(end, 'g')}"


def missing_field(field: str, present: Iterable[str], where: str) -> UserError:
    """Error for a missing field that names the fields present and the one probably meant."""
    names = list(present)
    near = next((name for name in SYNONYMS.get(field, ()) if name in names), None)
    if near is None:
        near = next(iter(difflib.get_close_matches(field, names, n=1, cutoff=0.6)), None)
    hint = f'Did you mean "{near}"? Rename it to "{field}".' if near else f'Add "{field}" to every row.'
    shown = ", ".join(names[:20]) or "none"
    return UserError(f'{where}: field "{field}" is missing (fields present: {shown}). {hint}')


def _text(fields: Mapping[str, Any], field: str, where: str) -> str:
    if field not in fields:
        raise missing_field(field, fields, where)
    value = fields[field]
    if not isinstance(value, str):
        raise UserError(f'{where}: field "{field}" must be text, but is {_shown(value)}: write it in double quotes')
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f'{where}: field "{field}" is not valid Unicode ({error.reason}): re-encode the manifest'
        ) from None
    return value


def _name(fields: Mapping[str, Any], field: str, where: str) -> str | None:
    value = fields.get(field)
    if value is None or value == "":
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # LibriSpeech speakers are numbers, and many manifests write them so
    return _text(fields, field, where)


def _seconds(fields: Mapping[str, Any], field: str, where: str) -> float | None:
    value = fields.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f'{where}: field "{field}" must be a number of seconds, but is {_shown(value)}')
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds) or seconds < 0:
        raise UserError(f'{where}: field "{field}" must be 0 or more seconds, but is {_shown(value)}')
    return seconds


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
