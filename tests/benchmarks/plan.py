"""What `plan` says of a CPU against what the bundle's own runner then takes, side by side in one run: error of latency and memory.

    python tests/benchmarks/plan.py -o FOLDER [--threads 1]

Prints the table of docs/export.md and writes FOLDER/plan.json. The clip is read speech (librispeech-sample) of the window's length.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from claims import LIBRISPEECH, MODEL, ROOT, edgeqlora, read_lines
from cpu import ours

CASES = {
    "whisper-tiny.en, 30 s, int8": (MODEL, "30", "int8"),
    "whisper-tiny.en, 10 s, int8": (MODEL, "10", "int8"),
    "whisper-tiny.en, 30 s, fp32": (MODEL, "30", "fp32"),
    "embedded Whisper, 10 s, fp32": (ROOT / "edgeqlora" / "demo" / "model", "10", "fp32"),
}


def speech(window_s: float, folder: Path) -> Path:
    """A manifest of one clip that fills the window but for 0.2 s."""
    import numpy as np
    import soundfile

    rows, pieces, n = read_lines(LIBRISPEECH / "test.jsonl"), [], 0
    for row in rows:
        audio, _ = soundfile.read(LIBRISPEECH / row["audio"], dtype="float32")
        pieces.append(audio)
        n += len(audio)
        if n > window_s * 16000:
            break
    path = folder / f"{window_s:g}.wav"
    soundfile.write(path, np.concatenate(pieces)[: int((window_s - 0.2) * 16000)], 16000)
    manifest = path.with_suffix(".jsonl")
    manifest.write_text(json.dumps({"audio": str(path), "text": "speech"}) + "\n")
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    out: Path = asked.output
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for i, (name, (model, window_s, precision)) in enumerate(CASES.items()):
        bundle, clip = out / f"bundle-{i}", speech(float(window_s), out)
        if not bundle.exists():
            flags = ["--window-s", window_s, "--precision", precision, "--margin-s", "off", "--max-wer-increase", "100"]
            edgeqlora("export", str(model), "-d", str(LIBRISPEECH / "dev.jsonl"), "-o", str(bundle), *flags)
        flags = [
            "--window-s",
            window_s,
            "--precision",
            precision,
            "--threads",
            str(asked.threads),
            "-o",
            str(out / f"plan-{i}.json"),
        ]
        edgeqlora("plan", str(model), *flags)
        planned = json.loads((out / f"plan-{i}.json").read_text())["windows"][0]
        measured = ours(bundle, clip, asked.threads, out / f"bench-{i}.json")
        report = json.loads((out / f"bench-{i}.json").read_text())
        phases = {name: report["latency_ms"][name]["p50"]["value"] for name in ("encoder", "decoder", "decoder_step")}
        real_ms = phases["encoder"] + phases["decoder"]
        n_steps = round(phases["decoder"] / phases["decoder_step"])
        planned_ms = planned["encoder_ms"] + n_steps * planned["token_ms"]
        found[name] = {
            "planned_ms": planned_ms, "measured_ms": real_ms, "n_steps": n_steps,
            "planned_mib": planned["memory_mib"], "measured_mib": measured["peak_mib"],
        }  # fmt: skip
    (out / "plan.json").write_text(json.dumps(found, indent=1))
    print(
        "| | planned, ms | measured, ms | error | planned, MiB | measured, MiB | error |\n|---|---|---|---|---|---|---|"
    )
    for name, row in found.items():
        errors = [f"{row[f'planned_{unit}'] / row[f'measured_{unit}'] - 1:+.0%}" for unit in ("ms", "mib")]
        print(
            f"| {name} | {row['planned_ms']:.0f} | {row['measured_ms']:.0f} | {errors[0]} "
            f"| {row['planned_mib']:.0f} | {row['measured_mib']:.0f} | {errors[1]} |"
        )


if __name__ == "__main__":
    main()
