"""Text to speech through the espeak-ng and flite programs."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgeqlora.demo.voices import Voice
from edgeqlora.errors import UserError
from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ

if TYPE_CHECKING:
    import numpy as np

PROGRAMS = ("espeak-ng", "flite")
TIMEOUT_S = 30.0


class Manner(NamedTuple):
    """How a text is said: `rate` 1.0 is the engine's usual speed, `pitch` 1.0 the voice's own pitch."""

    rate: float = 1.0
    pitch: float = 1.0


def check_programs(programs: tuple[str, ...] = PROGRAMS) -> None:
    """Raise UserError, with the line that installs them, unless all `programs` are on the path."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise UserError(
            f"not found on the path: {', '.join(missing)} (needed only to make the demo's speech again; it is "
            f"shipped with the demo). Install with: sudo apt-get install {' '.join(missing)}"
        )


def command_line(voice: Voice, text: str, manner: Manner, wav_path: Path) -> list[str]:
    """Arguments that make `voice` say `text` into `wav_path`."""
    if voice.engine == "espeak-ng":
        words_per_minute = str(round(165 * manner.rate))
        pitch = str(min(99, max(0, round(50 * manner.pitch))))
        return [
            "espeak-ng",
            "-v",
            voice.name,
            "-s",
            words_per_minute,
            "-p",
            pitch,
            "-w",
            str(wav_path),
            "--",
            text,
        ]
    if voice.engine == "flite":
        # flite takes no "--": texts come from our vocabulary, which has no leading dash.
        stretch = f"duration_stretch={1 / manner.rate:.3f}"
        mean_f0_hz = f"int_f0_target_mean={_FLITE_F0_HZ.get(voice.name, 105) * manner.pitch:.1f}"
        return ["flite", "-voice", voice.name, "--setf", stretch, "--setf", mean_f0_hz,
                "-t", text, "-o", str(wav_path)]  # fmt: skip
    raise UserError(f"engine={voice.engine!r} is not one of {', '.join(PROGRAMS)}")


_FLITE_F0_HZ = {"kal": 95, "kal16": 95, "awb": 129, "rms": 95, "slt": 170}


def synthesise(voice: Voice, text: str, manner: Manner = Manner()) -> np.ndarray:
    """Speech as float32 in [-1, 1], shape (n_samples,), 16 kHz, silence at both ends cut off.

    Raises UserError when the program fails or says nothing.
    """
    import soundfile
    import soxr

    with tempfile.TemporaryDirectory(prefix="edgeqlora-say-") as folder:
        wav_path = Path(folder) / "said.wav"
        arguments = command_line(voice, text, manner, wav_path)
        done = subprocess.run(arguments, capture_output=True, timeout=TIMEOUT_S, check=False)
        if done.returncode != 0 or not wav_path.is_file():
            reason = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
            raise UserError(f"{voice.engine} voice {voice.name!r} could not say {text!r}: {reason}")
        audio, sample_rate_hz = soundfile.read(wav_path, dtype="float32")
    audio = trim_silence(soxr.resample(audio, sample_rate_hz, SAMPLE_RATE_HZ).astype("float32"))
    if audio.size < SAMPLE_RATE_HZ // 20:
        raise UserError(f"{voice.engine} voice {voice.name!r} said nothing for {text!r}: try another voice")
    return audio


def trim_silence(audio: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    """Cut both ends where |audio| stays under `threshold` times its peak; 10 ms are left at each end."""
    import numpy as np

    loud = np.flatnonzero(np.abs(audio) > threshold * max(1e-6, float(np.abs(audio).max(initial=0.0))))
    if loud.size == 0:
        return audio[:0]
    margin = SAMPLE_RATE_HZ // 100
    return audio[max(0, int(loud[0]) - margin) : int(loud[-1]) + margin]
