"""whisper-tiny.en on a CPU, side by side in one run: this project's bundles (fp32 in whole windows; int8 with windows that follow the
clip, as export finds them), faster-whisper int8 and whisper.cpp fp16 of the same weights, greedy. Each in a process of its own, in turns: clip
by clip with all threads, and (bundle in int8, faster-whisper) as many clips at one time as threads, for throughput.

    python tests/benchmarks/cpu.py -o FOLDER [--threads 2] [--turns 2]
    python tests/benchmarks/cpu.py -o FOLDER --planted

Writes FOLDER/cpu.json and prints the table of docs/export.md. --planted: exports a copy of the model in which two layers have outlier
channels, the same function in fp32, and prints what the search tried (docs/pictures/precision.png is its picture). faster-whisper goes into a virtual environment of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from claims import LIBRISPEECH, MODEL, edgeqlora, peer, score

SETS = {
    "librispeech-sample test": LIBRISPEECH / "test.jsonl",
    "misc-sentences": LIBRISPEECH.parent / "misc-sentences" / "manifest.jsonl",
}
BUNDLES = {"fp32, whole windows": ("--precision", "fp32", "--margin-s", "off"), "as export finds it": ()}
IN_STREAMS = """
import json, resource, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import soundfile
from faster_whisper import WhisperModel
folder, manifest, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
model = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=1, num_workers=n)
rows = [json.loads(line) for line in manifest.read_text().splitlines()]
audios = [soundfile.read(manifest.parent / row["audio"], dtype="float32")[0] for row in rows]
def hear(audio):
    segments, _ = model.transcribe(audio, language="en", beam_size=1, temperature=0.0, without_timestamps=True, condition_on_previous_text=False)
    return " ".join(s.text.strip() for s in segments)
with ThreadPoolExecutor(n) as pool:
    list(pool.map(hear, audios[:n]))
    start = time.perf_counter()
    texts = list(pool.map(hear, audios))
    seconds = time.perf_counter() - start
found = [{"reference": row["text"], "hypothesis": text} for row, text in zip(rows, texts)]
print(json.dumps([found, seconds / sum(len(a) / 16000 for a in audios), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""

WHISPER_CPP = """
import json, resource, sys, time
from pathlib import Path
import soundfile
from pywhispercpp.model import Model
file, manifest, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
model = Model(file, n_threads=threads, print_progress=False, print_realtime=False, redirect_whispercpp_logs_to=None, language="en",
    no_timestamps=True, no_context=True, temperature_inc=0.0)
rows, found, seconds, audio_s = [json.loads(line) for line in manifest.read_text().splitlines()], [], 0.0, 0.0
for i, row in enumerate(rows):
    audio = soundfile.read(manifest.parent / row["audio"], dtype="float32")[0]
    for _ in range(2 if i == 0 else 1):
        start = time.perf_counter()
        text = " ".join(segment.text.strip() for segment in model.transcribe(audio))
        spent = time.perf_counter() - start
    seconds, audio_s = seconds + spent, audio_s + len(audio) / 16000
    found.append({"reference": row["text"], "hypothesis": text})
print(json.dumps([found, seconds / audio_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
del model
"""

RUN = """
import json, resource, subprocess, sys
done = subprocess.run(sys.argv[1:], capture_output=True, text=True)
print(json.dumps([done.returncode, done.stderr, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""

GROWTH = """
import sys, time
import numpy as np
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.decoders import open_decoder
from edgeqlora_jetson.runtimes import open_runtime
bundle = Bundle.load(sys.argv[1])
decoder = open_decoder(bundle, open_runtime(bundle, threads=int(sys.argv[2])))
draw = np.random.default_rng(0)
ms = []
for turn in range(12):
    state = decoder.start(decoder.encode(draw.normal(0, 0.5, (1, bundle.manifest["model"]["n_mels"], 1000)).astype(np.float32)))
    state.step(np.array([bundle.manifest["decoder"]["prompt_ids"]], dtype=np.int32))
    row = []
    for token in draw.integers(0, 40000, (210, 1, 1)).astype(np.int32):
        start = time.perf_counter()
        state.step(token)
        row.append(1e3 * (time.perf_counter() - start))
    ms.append(row)
ms = np.median(np.array(ms)[2:], axis=0)
print(np.median(ms[5:15]), np.median(ms[195:205]))
"""


def growth(bundle: Path, threads: int) -> tuple[float, float]:
    """Milliseconds of a step near the 10th and near the 200th token, of 10 s of noise, tokens forced."""
    line = [sys.executable, "-c", GROWTH, str(bundle), str(threads)]
    first, last = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    return float(first), float(last)


def ours(bundle: Path, data: Path, threads: int, report: Path, offline: bool = False) -> dict[str, Any]:
    """`bench` of the bundle's own runner: WER, real-time factor over all clips, peak memory of its process in MiB."""
    line = [sys.executable, str(bundle / "edgeqlora-jetson.pyz"), "bench", "--manifest", str(data), "--repeats", "1"]
    line += ["--threads", str(threads), "-o", str(report), *(["--scenario", "offline"] if offline else [])]
    done = subprocess.run([sys.executable, "-c", RUN, *line], capture_output=True, text=True, check=True)
    code, said, peak_mib = json.loads(done.stdout)
    if code:
        raise SystemExit(f"{' '.join(line)} failed:\n{said}")
    content = json.loads(report.read_text())
    rows = content["utterances"]
    scores = score([{"reference": row["reference"], "hypothesis": row["hypothesis"]} for row in rows])
    seconds = sum(statistics.median(row["latency_ms"]) for row in rows) / 1e3
    factor = seconds / sum(row["audio_s"] for row in rows)
    if offline:  # the clips of a batch have its time: the length of the run counts
        factor = 1 / content["throughput"]["audio_s_per_s"]["value"]
    return {"wer": scores["basic-unicode"], "rtf": factor, "peak_mib": peak_mib}


def theirs(out: Path, data: Path, threads: int) -> dict[str, Any]:
    rows = peer(out, MODEL, data, 0, 1, threads)
    seconds = sum(row["seconds"][0] for row in rows)
    return {
        "wer": score(rows)["basic-unicode"],
        "rtf": seconds / sum(row["audio_s"] for row in rows),
        "peak_mib": rows[0]["peak_mib"],
    }


def by_script(python: Path | str, script: str, model: Path, data: Path, threads: int) -> dict[str, Any]:
    """One of the scripts above: texts, real-time factor, peak memory."""
    line = [str(python), "-c", script, str(model), str(data), str(threads)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    rows, factor, peak_mib = json.loads(done.stdout.strip().splitlines()[-1])
    return {"wer": score(rows)["basic-unicode"], "rtf": factor, "peak_mib": peak_mib}


def planted(out: Path) -> None:
    """Channels 3 and 11 of two layers' inputs 3000 times as large, and the weights that read them as much smaller."""
    import shutil

    import torch
    from transformers import WhisperForConditionalGeneration

    folder = out / "planted"
    if not folder.exists():
        model = WhisperForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32)
        shutil.copytree(MODEL, folder)
        with torch.no_grad():
            for layer in (model.model.encoder.layers[0], model.model.decoder.layers[0]):
                for channel in (3, 11):
                    for part in (layer.final_layer_norm.weight, layer.final_layer_norm.bias):
                        part[channel] *= 3000
                    layer.fc1.weight[:, channel] /= 3000
        model.save_pretrained(folder)
    flags = ["-d", str(LIBRISPEECH / "dev.jsonl"), "--margin-s", "2", "--overwrite", "-o", str(out / "bundle-planted")]
    print(edgeqlora("export", str(folder), *flags)[0])
    found = json.loads((out / "bundle-planted" / "manifest.json").read_text())["precision"]
    print(f"in fp32: {', '.join(found['fp32'])}")


def size_mb(folder: Path, ending: str) -> float:
    return sum(path.stat().st_size for path in folder.glob(ending)) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--planted", action="store_true")
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    if asked.planted:
        planted(asked.output)
        return
    for i, flags in enumerate(BUNDLES.values()):
        if not (asked.output / f"bundle-{i}").exists():
            edgeqlora(
                "export",
                str(MODEL),
                "-d",
                str(LIBRISPEECH / "dev.jsonl"),
                "-o",
                str(asked.output / f"bundle-{i}"),
                *flags,
            )
    cpp = asked.output / "bundle-0-ggml" / "ggml-model.bin"
    if not cpp.exists():
        ggml = ["--precision", "fp32", "--margin-s", "off", "--also", "ggml", "--overwrite"]
        edgeqlora(
            "export", str(MODEL), "-d", str(LIBRISPEECH / "dev.jsonl"), *ggml, "-o", str(asked.output / "bundle-0")
        )
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for _ in range(asked.turns):
        for name, data in SETS.items():
            of_set = found.setdefault(name, {})
            of_set.setdefault("faster-whisper int8", []).append(theirs(asked.output, data, asked.threads))
            for i, what in enumerate(BUNDLES):
                bundle = asked.output / f"bundle-{i}"
                of_set.setdefault(what, []).append(ours(bundle, data, asked.threads, asked.output / f"bench-{i}.json"))
            of_set.setdefault("whisper.cpp fp16", []).append(
                by_script(sys.executable, WHISPER_CPP, cpp, data, asked.threads)
            )
            python = asked.output / "peer-venv" / "bin" / "python"
            of_set.setdefault(f"faster-whisper int8, {asked.threads} clips at one time", []).append(
                by_script(python, IN_STREAMS, asked.output / "peer-model", data, asked.threads)
            )
            of_set.setdefault(f"as export finds it, {asked.threads} clips at one time", []).append(
                ours(asked.output / "bundle-1", data, asked.threads, asked.output / "bench-offline.json", offline=True)
            )
    sizes = {what: round(size_mb(asked.output / f"bundle-{i}", "*.onnx"), 1) for i, what in enumerate(BUNDLES)}
    sizes["faster-whisper int8"] = round(size_mb(asked.output / "peer-model", "model.bin"), 1)
    sizes["whisper.cpp fp16"] = round(size_mb(cpp.parent, "*.bin"), 1)
    steps = {what: growth(asked.output / f"bundle-{i}", asked.threads) for i, what in enumerate(BUNDLES)}
    content = {"threads": asked.threads, "megabytes": sizes, "runs": found, "ms_of_step_10_and_200": steps}
    (asked.output / "cpu.json").write_text(json.dumps(content, indent=1))
    for what, (first, last) in steps.items():
        print(
            f"{what}: a step takes {first:.2f} ms at token 10 and {last:.2f} ms at token 200 ({last / first - 1:+.0%})"
        )
    for name, of_set in found.items():
        print(
            f"\n{name}, {asked.threads} threads, {asked.turns} turns\n\n| | WER, % | real-time factor | peak memory, MiB | weights, MB |\n|---|---|---|---|---|"
        )
        for what, rows in of_set.items():
            factors = ", ".join(f"{row['rtf']:.4f}" for row in rows)
            print(
                f"| {what} | {rows[0]['wer']:.2f} | {factors} | {max(row['peak_mib'] for row in rows):.0f} | {sizes.get(what, '')} |"
            )


if __name__ == "__main__":
    main()
