"""The clips of a run, decoded before it starts, so that reading files is in no measured second and no measured Joule."""

from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..audio.load import load_audio
from ..audio.windows import window_samples
from .scenarios import pass_order

AUDIO_BUDGET_MIB = 256
"""Most memory for decoded clips: 70 minutes of 16 kHz float32. What does not fit is transcribed once, untimed."""


class Workload(NamedTuple):
    """Clips held in memory. `clips` gives their numbers in the manifest; those not held are in `others`."""

    clips: List[int]
    audios: List[np.ndarray]  # float32 (n_samples,) each
    windows: List[Optional[float]]  # s; None: longer than the largest window, is cut
    others: List[int]


def load_workload(clips: Sequence[Any], transcriber: Any, seed: int) -> Workload:
    """Decode clips (bundle.EvalClip) up to AUDIO_BUDGET_MIB: all of them, or a random share drawn with `seed`.

    The first one is always held. Raises UserError for a file that cannot be read, also among those not held.
    """
    held: List[Tuple[int, np.ndarray]] = []
    others, n_bytes = [], 0
    for clip in pass_order(len(clips), seed, 0):
        audio = load_audio(clips[clip].path, transcriber.sample_rate_hz)
        if held and n_bytes + audio.nbytes > AUDIO_BUDGET_MIB * 2**20:
            others.append(clip)
            continue
        held.append((clip, audio))
        n_bytes += audio.nbytes
    held.sort(key=lambda pair: pair[0])
    return Workload(
        [clip for clip, _ in held],
        [audio for _, audio in held],
        [window_of(transcriber, audio) for _, audio in held],
        sorted(others),
    )


def window_of(transcriber: Any, audio: np.ndarray) -> Optional[float]:
    """The window (s) a clip is given; None: it is longer than the largest and is cut."""
    if len(audio) > window_samples(max(transcriber.windows_s), transcriber.sample_rate_hz):
        return None
    return transcriber.choose_window(len(audio))


def transcribe_others(clips: Sequence[Any], workload: Workload, transcriber: Any) -> Iterator[Tuple[int, Any]]:
    """(number, Transcript) of the clips that are not held, one after the other."""
    for clip in workload.others:
        yield clip, transcriber.transcribe(load_audio(clips[clip].path, transcriber.sample_rate_hz))
