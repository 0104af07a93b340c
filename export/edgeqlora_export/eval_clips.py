"""The evaluation clips that travel with a bundle: 16 kHz mono PCM16 WAV, so that the board needs no audio library."""

from __future__ import annotations

import json
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

SAMPLE_RATE_HZ = 16000


def write_wav(path: Path, audio: np.ndarray) -> None:
    """Write audio, float in [-1, 1], shape (n_samples,), as 16 kHz mono PCM16; what is beyond +-1 is clipped."""
    pcm = np.clip(np.rint(np.asarray(audio, dtype=np.float64) * 32768), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(pcm.tobytes())


def write_eval_clips(folder: Path, clips: Sequence[tuple[np.ndarray, str]]) -> None:
    """Write 0001.wav, 0002.wav, ... and manifest.jsonl (audio, text, duration in s) into `folder`."""
    folder.mkdir(parents=True)
    rows = []
    for number, (audio, text) in enumerate(clips, start=1):
        name = f"{number:04d}.wav"
        write_wav(folder / name, audio)
        rows.append({"audio": name, "text": text, "duration": round(len(audio) / SAMPLE_RATE_HZ, 4)})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "manifest.jsonl").write_text(lines, encoding="utf-8")
