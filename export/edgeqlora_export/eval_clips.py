"""The evaluation clips that travel with a bundle: 16 kHz mono PCM16 WAV, so that the board needs no audio library."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeqlora_jetson.audio.wav import write_wav
from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ


def write_eval_clips(folder: Path, clips: Sequence[tuple[np.ndarray, str]]) -> None:
    """Write 0001.wav, 0002.wav, ... and manifest.jsonl (audio, text, duration in s) into `folder`."""
    folder.mkdir(parents=True)
    rows = []
    for number, (audio, text) in enumerate(clips, start=1):
        name = f"{number:04d}.wav"
        write_wav(folder / name, audio, SAMPLE_RATE_HZ)
        rows.append({"audio": name, "text": text, "duration": round(len(audio) / SAMPLE_RATE_HZ, 4)})
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "manifest.jsonl").write_text(lines, encoding="utf-8")
