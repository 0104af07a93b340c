"""Measures every figure that README claims, on real speech in ../shared; `make bench`.

Each comparison is side by side in one run on this machine: ratios, not absolute times. faster-whisper is installed into
a virtual environment of its own (it is a peer to be measured, not a dependency). Writes claims.json.

    python tests/benchmarks/claims.py [--only NAME ...] [--output FOLDER]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
MODEL = SHARED / "models" / "whisper-tiny.en"
FSDD = SHARED / "data" / "fsdd"
LIBRISPEECH = SHARED / "data" / "librispeech-sample"
TRAIN = ["--train", str(FSDD / "train.jsonl"), "--dev", str(FSDD / "dev.jsonl")]
SETTINGS = ["--window-s", "2", "--batch-size", "16", "--steps", "200", "--learning-rate", "1e-3", "--seed", "42"]
SETTINGS += ["--spec-augment", "--speed-perturb", "0.9,1.0,1.1"]
PEER = r"""
import json, resource, sys, time
import soundfile
from faster_whisper import WhisperModel
folder, manifest, limit, repeats, threads = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
model = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=threads)
from pathlib import Path
rows = [json.loads(x) for x in open(manifest)][:limit] if limit else [json.loads(x) for x in open(manifest)]
out = []
for i, row in enumerate(rows):
    audio, rate = soundfile.read(Path(manifest).parent / row["audio"], dtype="float32")
    assert rate == 16000
    times = []
    for _ in range(repeats + (3 if i == 0 else 0)):
        start = time.perf_counter()
        segments, _ = model.transcribe(audio, language="en", beam_size=1, temperature=0.0, without_timestamps=True, condition_on_previous_text=False)
        text = " ".join(s.text.strip() for s in segments)
        times.append(time.perf_counter() - start)
    out.append({"reference": row["text"], "hypothesis": text, "seconds": times[-repeats:], "audio_s": len(audio) / rate})
out[0]["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps(out))
"""


def edgeqlora(*arguments: str) -> tuple[str, float]:
    """Run the command line as a user would; returns its output and the seconds it took."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "edgeqlora", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"edgeqlora {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr, time.monotonic() - start


def training(out: Path) -> dict[str, Any]:
    """fsdd, 2 s window: test WER before and after, time and memory of training."""
    before = evaluate(str(MODEL), FSDD / "test.jsonl", out / "base-30s.json", "--window-s", "30")
    _, wall_s = edgeqlora(
        "train", "-m", str(MODEL), *TRAIN, *SETTINGS, "--eval-every", "50", "-o", str(out / "adapter"), "--overwrite"
    )
    card = json.loads((out / "adapter" / "card.json").read_text())
    edgeqlora("merge", str(out / "adapter"), "-o", str(out / "merged"), "--overwrite")
    after = evaluate(str(out / "merged"), FSDD / "test.jsonl", out / "merged.json")
    return {
        "test_wer_before_30s": before["wer"],
        "test_wer_after": after["wer"],
        "training_command_s": round(wall_s, 1),
        "training_s": card["figures"]["wall_time"]["value"],
        "peak_rss_mib": card["figures"]["peak_rss"]["value"],
        "samples_per_s": card["figures"]["samples_per_s"]["value"],
    }


def windows(out: Path) -> dict[str, Any]:
    """The same training at 2 s and at 30 s, in turns: samples/s and peak memory."""
    rows: dict[str, list[dict[str, float]]] = {"2": [], "30": []}
    for turn in range(2):
        for window, steps in (("2", "12"), ("30", "4")):
            flags = [
                "--window-s",
                window,
                "--batch-size",
                "16",
                "--steps",
                steps,
                "--seed",
                "42",
                "--eval-every",
                "100",
            ]
            folder = out / f"window-{window}-{turn}"
            edgeqlora(
                "train",
                "-m",
                str(MODEL),
                "--train",
                str(FSDD / "train.jsonl"),
                *flags,
                "-o",
                str(folder),
                "--overwrite",
            )
            figures = json.loads((folder / "card.json").read_text())["figures"]
            rows[window].append(
                {"samples_per_s": figures["samples_per_s"]["value"], "rss": figures["peak_rss"]["value"]}
            )
    speed = [a["samples_per_s"] / b["samples_per_s"] for a, b in zip(rows["2"], rows["30"], strict=True)]
    memory = [a["rss"] / b["rss"] for a, b in zip(rows["2"], rows["30"], strict=True)]
    return {"runs": rows, "samples_per_s_ratio": speed, "peak_rss_ratio": memory}


def bundle(out: Path) -> dict[str, Any]:
    """The fsdd bundle, whole windows, against torch (texts) and against faster-whisper int8 (latency, WER), clip by clip."""
    edgeqlora(
        "export",
        str(out / "merged"),
        "-t",
        "cpu",
        "-d",
        str(FSDD / "dev.jsonl"),
        "--margin-s",
        "off",
        "--precision",
        "fp32",
        "-o",
        str(out / "bundle"),
        "--overwrite",
    )
    ours = evaluate(str(out / "bundle"), FSDD / "test.jsonl", out / "bundle.json")
    evaluate(str(out / "merged"), FSDD / "test.jsonl", out / "merged.json")
    texts = [read_lines(out / f"{name}.jsonl") for name in ("bundle", "merged")]
    same = [a["hypothesis"] == b["hypothesis"] for a, b in zip(*texts, strict=True)]
    clips = sample(FSDD / "test.jsonl", out / "latency.jsonl", 50)
    # As export makes it where nothing else is asked for: int8 and a margin, as far as the dev clips allow.
    edgeqlora(
        "export", str(out / "merged"), "-t", "cpu", "-d", str(FSDD / "dev.jsonl"), "-o", str(out / "bundle-auto"), "--overwrite"
    )  # fmt: skip
    found = evaluate(str(out / "bundle-auto"), FSDD / "test.jsonl", out / "bundle-auto.json")
    pairs: dict[str, list[tuple[float, float]]] = {"bundle": [], "bundle-auto": []}
    for turn in range(3):
        theirs = peer(out, MODEL, clips, 0, 2)
        theirs_ms = 1000 * statistics.median(t for row in theirs for t in row["seconds"])
        for name, rows in pairs.items():
            report = out / f"{name}-{turn}.json"
            flags = ["--manifest", str(clips), "--repeats", "2", "--threads", "2", "-o", str(report)]
            edgeqlora("bench", str(out / name), *flags)
            rows.append((median_ms(json.loads(report.read_text())), theirs_ms))
    theirs_all = peer(out, MODEL, FSDD / "test.jsonl", 0, 1)
    manifest = json.loads((out / "bundle-auto" / "manifest.json").read_text())
    return {
        "same_text_as_torch": sum(same) / len(same),
        "n_clips": len(same),
        "bundle_wer": ours["wer"],
        "faster_whisper_wer": score(theirs_all),
        "latency_ms_ours_theirs": pairs["bundle"],
        "latency_ratio": [theirs / ours for ours, theirs in pairs["bundle"]],
        "as_exported": {
            "wer": found["wer"],
            "int8_parts": len(manifest["precision"]["int8"]),
            "fp32_parts": len(manifest["precision"].get("fp32", [])),
            "margin_s": manifest["audio"]["margin"]["margin_s"],
            "latency_ms_ours_theirs": pairs["bundle-auto"],
            "latency_ratio": [theirs / ours for ours, theirs in pairs["bundle-auto"]],
        },
    }


def native(out: Path) -> dict[str, Any]:
    """librispeech-sample with the untuned model at 30 s, whole windows: bundle against torch greedy; RTF against faster-whisper int8."""
    test = LIBRISPEECH / "test.jsonl"
    edgeqlora(
        "export",
        str(MODEL),
        "-t",
        "cpu",
        "--window-s",
        "30",
        "-d",
        str(LIBRISPEECH / "dev.jsonl"),
        "--margin-s",
        "off",
        "--precision",
        "fp32",
        "-o",
        str(out / "native"),
        "--overwrite",
    )
    torch_report = evaluate(str(MODEL), test, out / "native-torch.json", "--window-s", "30", "--batch-size", "1")
    ours = evaluate(str(out / "native"), test, out / "native-bundle.json", "--threads", "2")
    theirs = peer(out, MODEL, test, 0, 1)
    return {
        "torch_wer": torch_report["wer"],
        "bundle_wer": ours["wer"],
        "faster_whisper_wer": score(theirs),
        "rtf_ours": ours["rtf"]["value"],
        "rtf_torch": torch_report["rtf"]["value"],
        "rtf_faster_whisper": sum(row["seconds"][0] for row in theirs) / sum(row["audio_s"] for row in theirs),
    }


def evaluate(source: str, data: Path, output: Path, *flags: str) -> dict[str, Any]:
    edgeqlora("evaluate", source, "-d", str(data), "-o", str(output), *flags)
    report = json.loads(output.read_text())
    return {**report, "wer": {name: figure["value"] for name, figure in report["wer"].items()}}


def peer(out: Path, model: Path, manifest: Path, limit: int, repeats: int, threads: int = 2) -> list[dict[str, Any]]:
    """faster-whisper int8 on the same weights (its own converter), in its own environment."""
    venv = out / "peer-venv"
    python = venv / "bin" / "python"
    if not (out / "peer-model" / "model.bin").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "faster-whisper", "soundfile", "transformers", "torch"], check=True)
        convert = [str(venv / "bin" / "ct2-transformers-converter"), "--model", str(model), "--output_dir"]
        files = ["--copy_files", "tokenizer.json", "preprocessor_config.json", "--quantization", "int8"]
        subprocess.run([*convert, str(out / "peer-model"), *files, "--force"], check=True)
    done = subprocess.run(
        [str(python), "-c", PEER, str(out / "peer-model"), str(manifest), str(limit), str(repeats), str(threads)],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip
    return json.loads(done.stdout)


def score(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from edgeqlora.evaluation.scores import score_texts

    scores = score_texts(
        [r["reference"] for r in rows], [r["hypothesis"] for r in rows], ["basic-unicode", "whisper-english"]
    )
    return {name: figure["value"] for name, figure in scores["wer"].items()}


def sample(manifest: Path, path: Path, n: int) -> Path:
    """Every k-th row of a manifest, with absolute audio paths."""
    rows = read_lines(manifest)
    picked = [rows[i * len(rows) // n] for i in range(n)]
    lines = [json.dumps({**row, "audio": str(manifest.parent / row["audio"])}) for row in picked]
    path.write_text("\n".join(lines) + "\n")
    return path


def median_ms(report: dict[str, Any]) -> float:
    return float(report["latency_ms"]["total"]["p50"]["value"])


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


PARTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "training": training,
    "windows": windows,
    "bundle": bundle,
    "native": native,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "claims")
    arguments = parser.parse_args()
    if not MODEL.is_dir():
        raise SystemExit(f"needs the real model and speech in {SHARED}, which is not here")
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = arguments.output / "claims.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    from edgeqlora.card import library_versions
    from edgeqlora_jetson.board.machine import read_machine

    for name in arguments.only:
        print(f"{name}: {PARTS[name].__doc__}", flush=True)
        found[name] = {**PARTS[name](arguments.output), "machine": read_machine(), "versions": library_versions()}
        results.write_text(json.dumps(found, indent=2) + "\n")
        print(json.dumps(found[name], indent=2), flush=True)
    print(f"Done: figures in {results}")


if __name__ == "__main__":
    main()
