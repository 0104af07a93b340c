"""One utterance of a data set: where its audio is and what was said."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgeqlora.errors import UserError

NAMES: dict[str, tuple[str, ...]] = {
    "audio": (
        "audio",
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
    "text": ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_text", "txt", "label"),
    "start": ("start", "start_time", "begin", "begin_time", "offset"),
    "end": ("end", "end_time", "stop", "stop_time"),
    "duration": ("duration",),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "language": ("language", "lang", "locale"),
    "id": ("id",),
    "split": ("split",),
}
"""What a field may be called, our own name first, then those of other tools. Times are in seconds."""

CLASS = "label"
"""A text where no other field is one; beside a text it names a class, such as the kind of a noise."""

HARMLESS = frozenset(
    """
    accent accents age book_id bytes channels chapter_id corpus dataset domain down_votes encoding format gender
    licence license n_channels n_samples noise num_channels num_samples sample_rate sampling_rate segment sentence_domain
    sentence_id sentences sex size snr snr_db source title up_votes variant
    """.split()  # noqa: SIM905
)
"""Fields that data sets carry and that change nothing here."""

Ranges = tuple[tuple[int, int], ...]
"""(start, end) in samples at 16 kHz, in order and apart."""

MAX_S = 1e8
"""Three years: no time in a recording is behind that, and samples can still be counted there."""

_CUT_WORDS = frozenset(["start", "begin", "onset", "offset", "end", "stop", "seek", "from", "to"])


@dataclass(frozen=True)
class Row:
    """One utterance; the audio may be a whole file, a cut of it, or bytes that are already in memory."""

    audio: str
    """Absolute path of the audio file; with `read_bytes`, a name to show in messages."""
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
    read_bytes: Callable[[], bytes] | None = None
    """Reads the encoded audio (a whole wav, flac, ogg or mp3 file) where the data set holds it instead of a path."""
    kept: Ranges | None = None
    """What is heard of this utterance (see silence.py); None: all of it; empty: nothing, it has no speech."""
    id: str = ""
    """Name of the utterance, unique within its data set."""
    unread: tuple[str, ...] = ()
    """Fields of the data set that nothing here reads, but for those known to be harmless."""
    was_quoted: bool = False
    """A table's quotation marks around the text, or doubled in it, were taken away."""

    @property
    def name(self) -> str:
        """File name for messages: path (relative to the working folder where shorter) and the cut, if any."""
        relative = os.path.relpath(self.audio) if self.read_bytes is None else self.audio
        shown = self.audio if relative.startswith("..") else relative
        if self.start is None and self.end is None:
            return shown
        end = "end" if self.end is None else f"{self.end:g}"
        return f"{shown} [{self.start or 0:g} to {end} s]"


def parse_row(fields: Mapping[str, Any], where: str, folder: str, default_name: str = "") -> Row:
    """Turn one record of any source, under any of the `NAMES`, into a `Row`.

    `where` (`file:line`) begins every error; relative audio paths are taken from `folder`. Audio is a path, the bytes of
    a file, or an object of `path`, `bytes` and a cut. A start with a duration and no end is a cut. default_name: id of a
    row that has none; default: its path and cut.

    Raises UserError for a missing field, a wrong type, two texts or times that differ, a cut in other units or by
    channel, or one that holds no audio.
    """
    audio, audio_bytes, inside = _audio(fields, where)
    times = {name: _seconds({**fields, **inside}, name, where) for name in ("start", "end", "duration")}
    start, end, duration = times["start"], times["end"], times["duration"]
    unread = _unread(fields, where)
    if start is not None and end is None and duration is not None:
        end = start + duration
    if end is not None and end <= (start or 0.0):
        raise UserError(
            f"{where}: end={end:g} must be greater than start={start or 0:g} (seconds into the file): "
            "correct the row or leave both out to use the whole file"
        )
    if duration is None and end is not None:
        duration = end - (start or 0.0)
    if audio_bytes is None:
        name = os.path.normpath(os.path.join(folder, audio))
    else:
        name = f"{where} {os.path.basename(audio)}".strip()
    return Row(
        audio=name,
        text=_text(fields, _present(fields, "text", where), where),
        duration=duration,
        speaker=_name(fields, "speaker", where),
        language=_name(fields, "language", where),
        start=start,
        end=end,
        read_bytes=None if audio_bytes is None else partial(bytes, audio_bytes),
        id=_name(fields, "id", where) or default_name or default_id(audio, start, end),
        unread=unread,
    )


def default_id(audio: str, start: float | None, end: float | None) -> str:
    """Name of an utterance that has none: the path as the manifest writes it, and the cut."""
    if start is None and end is None:
        return audio
    return f"{audio}@{start or 0:g}-{'' if end is None else format(end, 'g')}"


def missing_field(field: str, present: Iterable[str], where: str) -> UserError:
    """Error for a missing field that names the fields present and the one probably meant."""
    names = list(present)
    near = next(iter(difflib.get_close_matches(field, names, n=1, cutoff=0.6)), None)
    hint = f'Did you mean "{near}"? Rename it to "{field}".' if near else f'Add "{field}" to every row.'
    shown = ", ".join(names[:20]) or "none"
    return UserError(f'{where}: field "{field}" is missing (fields present: {shown}). {hint}')


def _present(fields: Mapping[str, Any], field: str, where: str) -> str:
    """The name under which a needed field stands; UserError where it is missing or two of its names disagree."""
    found = [name for name in NAMES[field] if name in fields]
    if len(found) > 1 and found[-1] == CLASS:
        found.pop()
    if not found:
        raise missing_field(field, fields, where)
    texts = [name for name in found if isinstance(fields[name], str)]
    if len({fields[name].strip() for name in texts}) > 1 and (field == "text" or found[0] != field):
        raise UserError(
            f'{where}: "{texts[0]}" and "{texts[1]}" are both there and differ: '
            f"keep the one that is the {field} and remove the other"
        )
    return found[0]


def _audio(fields: Mapping[str, Any], where: str) -> tuple[str, bytes | None, dict[str, Any]]:
    """Path, bytes (None: read the path) and the times that stand in an audio object."""
    field = _present(fields, "audio", where)
    value = fields[field]
    if isinstance(value, bytes):
        return "", value, {}
    if not isinstance(value, Mapping):
        return _path(fields, field, where), None, {}
    inside = {name: value[name] for key in ("start", "end", "duration") for name in NAMES[key] if name in value}
    twice = next(
        (name for name in inside if name in fields and fields[name] != inside[name] and name != "duration"), None
    )
    if twice:
        raise UserError(f'{where}: "{twice}" stands in "{field}" and beside it, and they differ: keep one of them')
    content, path = value.get("bytes"), value.get("path")
    if isinstance(content, bytes):
        return path if isinstance(path, str) else "", content, inside
    if path is None:
        found = ", ".join(map(str, value)) or "nothing"
        raise UserError(
            f'{where}: "{field}" is an object without a path (it has {found}): write the name of the sound file, '
            f'"{field}": "clips/1.wav"'
        )
    return _path(value, "path", where), None, inside


def _path(fields: Mapping[str, Any], field: str, where: str) -> str:
    path = _text(fields, field, where)
    if not path.strip() or "\0" in path:
        raise UserError(f"{where}: {field}={path!r} is not a file name: give the path of an audio file")
    if "://" in path:
        raise UserError(f"{where}: {field}={path!r} is an address: download the file and give its path")
    return path


def _unread(fields: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Names of fields that are not read; UserError for those that would cut the audio and are not understood."""
    known = {name for names in NAMES.values() for name in names}
    if any(name in fields for name in NAMES["text"] if name != CLASS):
        known.discard(CLASS)
    unread = []
    for name, value in fields.items():
        if name in known or name.lower() in HARMLESS or value is None or value == "":
            continue
        words = set(re.split(r"[^a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()))
        if name == "channel":
            raise UserError(
                f'{where}: "channel" is not read, all channels of a file are averaged: write the channel that is meant to '
                "a file of its own, or remove the field"
            )
        if words & _CUT_WORDS and _is_number(value):
            raise UserError(
                f'{where}: "{name}" looks like a cut and is not read: write "start" and "end" in seconds, '
                "or remove the field to use the whole file"
            )
        unread.append(name)
    return tuple(unread)


def _text(fields: Mapping[str, Any], field: str, where: str) -> str:
    value = fields[field]
    if value is None:
        what = 'write "" for a clip without speech' if field in NAMES["text"] else "give it a value"
        raise UserError(f'{where}: field "{field}" is null: {what}, or remove the row')
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
    for name in NAMES[field]:
        value = fields.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, int) and not isinstance(value, bool):
            if field == "language":
                continue  # the number of a class, which names no language
            return str(value)  # LibriSpeech speakers are numbers, and many manifests write them so
        return _text(fields, name, where)
    return None


def _seconds(fields: Mapping[str, Any], field: str, where: str) -> float | None:
    """The time under any name of `field`; UserError where two of them differ."""
    found = {name: fields[name] for name in NAMES[field] if fields.get(name) not in (None, "")}
    seconds = {name: _number(value, name, where) for name, value in found.items()}
    if len(set(seconds.values())) > 1:
        told = " and ".join(f"{name}={value:g}" for name, value in seconds.items())
        raise UserError(f"{where}: {told} differ and mean the same ({field}): keep one of them")
    return next(iter(seconds.values()), None)


def _number(value: Any, field: str, where: str) -> float:
    if not _is_number(value):
        raise UserError(f'{where}: field "{field}" must be a number of seconds, but is {_shown(value)}')
    try:
        seconds = float(value)
    except OverflowError:
        seconds = math.inf
    if not 0 <= seconds < MAX_S:
        raise UserError(
            f'{where}: field "{field}" must be 0 or more seconds, below {MAX_S:,.0f}, but is {_shown(value)}'
        )
    return seconds


def _is_number(value: Any) -> bool:
    """Numbers, and texts of tables that are numbers."""
    if isinstance(value, str):
        return re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", value) is not None
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
