"""The tables of docs/training.md that need hours: each is made by commands that a user could type, and kept as JSON lines.

    python tests/benchmarks/tables.py calibration|forgetting|layers|regulariser|tune-embedded|tune-tiny.en|windows -o FOLDER

A step whose output is there already is not done again. Rows go to tests/benchmarks/tables/NAME.jsonl.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
TINY = SHARED / "models" / "whisper-tiny.en"
FSDD, LIBRISPEECH, MISC = (SHARED / "data" / name for name in ("fsdd", "librispeech-sample", "misc-sentences"))
NOISE = SHARED / "data" / "noise"
DEMO = ROOT / "edgeqlora" / "demo"


def edgeqlora(*arguments: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgeqlora", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"edgeqlora {' '.join(map(str, arguments))} failed:\n{done.stdout}{done.stderr}")


def trained(folder: Path, *flags: Any) -> dict[str, Any]:
    """The card of `train ... -o folder`, run where the folder is not there."""
    if not folder.exists():
        edgeqlora("train", *flags, "-o", folder, *(["--resume"] if Path(f"{folder}.partial").exists() else []))
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    return card


def scored(source: Path, data: Path, report: Path, *flags: Any) -> dict[str, Any]:
    """The report of `evaluate`, with the WER of whisper-english."""
    if not report.exists():
        edgeqlora("evaluate", source, "-d", data, "-o", report, "--worst", 0, *flags)
    content: dict[str, Any] = json.loads(report.read_text())
    return content


def wer(report: dict[str, Any], normaliser: str = "whisper-english") -> float | None:
    value: float | None = report["wer"][normaliser]["value"]
    return None if value is None else round(value, 2)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def forgetting(out: Path) -> list[dict[str, Any]]:
    """tiny.en on fsdd, canary librispeech-sample (dev), with and without replay of its train set; test sets of both."""
    flags = ["-m", TINY, "--train", FSDD / "train.jsonl", "--dev", FSDD / "dev.jsonl", "--window-s", 2, "--steps", 100]
    flags += ["--canary", LIBRISPEECH / "dev.jsonl", "--eval-every", 50, "--no-low-memory"]
    arms: dict[str, list[Any]] = {
        "base": [],
        "tuned": [],
        "replay": ["--replay", LIBRISPEECH / "train.jsonl", "--replay-share", 0.5],
    }
    rows = []
    for name, extra in arms.items():
        source, card = TINY, {}
        if name != "base":
            source = out / name
            card = trained(source, *flags, *extra)
        short = ["--window-s", "2"] if name != "base" else []
        rows.append(
            {
                "arm": name,
                "fsdd_test_wer": wer(scored(source, FSDD / "test.jsonl", out / f"{name}-fsdd.json", *short)),
                "librispeech_test_wer": wer(
                    scored(source, LIBRISPEECH / "test.jsonl", out / f"{name}-libri.json", "--window-s", "30")
                ),
                "canary": {key: card["canary"][key] for key in ("windows_s", "before", "after")} if card else None,
                "best_step": card.get("best_step"),
                "training_s": card["figures"]["wall_time"]["value"] if card else None,
            }
        )
    return rows


def layers(out: Path) -> list[dict[str, Any]]:
    """The embedded Whisper with its whole encoder, without one and without two layers, all trained alike; time of the encoder in bundles."""
    speech = DEMO / "speech"
    rows = []
    for name, flags in {
        "whole": [],
        "auto:1": ["--drop-layers", "auto:1"],
        "auto:2": ["--drop-layers", "auto:2"],
        "full fine-tuning": ["--method", "full"],
        "full, auto:1": ["--method", "full", "--drop-layers", "auto:1"],
    }.items():
        folder = out / name.replace(":", "").replace(" ", "-").replace(",", "")
        rate = 1e-3 if "--method" in flags else 9e-3
        card = trained(
            folder, "-m", DEMO / "model", "--train", speech / "train.jsonl", "--dev", speech / "dev.jsonl", "--window-s", 3,
            "--steps", 150, "--learning-rate", rate, "--seed", 1, "--no-low-memory", *flags,
        )  # fmt: skip
        merged = folder if "--method" in flags else Path(f"{folder}-merged")
        if not merged.exists():
            edgeqlora("merge", folder, "-o", merged)
        bundle = Path(f"{folder}-bundle")
        if not bundle.exists():
            edgeqlora("export", merged, "--target", "cpu", "-d", speech / "test.jsonl", "-o", bundle)
        rows.append(
            {
                "arm": name,
                "dropped": card.get("dropped_layers"),
                "trainable": card["figures"]["trainable_parameters"]["value"],
                "test_wer": wer(
                    scored(merged, speech / "test.jsonl", Path(f"{folder}.json"), "--normaliser", "basic-unicode"),
                    "basic-unicode",
                ),
                "bundle": bundle,
            }
        )
    times = benched([row.pop("bundle") for row in rows], out, 100)
    return [{**row, **found} for row, found in zip(rows, times, strict=True)]


def benched(bundles: Sequence[Path], out: Path, n_clips: int) -> list[dict[str, list[float]]]:
    """p50 of encoder and whole on one thread, three turns of all bundles, so that what else the machine does hits all alike."""
    rows: list[dict[str, list[float]]] = [{"encoder_p50_ms": [], "p50_ms": []} for _ in bundles]
    for turn in range(3):
        for row, bundle in zip(rows, bundles, strict=True):
            report = out / f"bench-{turn}-{bundle.name}.json"
            if not report.exists():
                edgeqlora("bench", bundle, "--limit", n_clips, "--threads", 1, "-o", report)
            found = json.loads(report.read_text())["latency_ms"]
            row["encoder_p50_ms"].append(found["encoder"]["p50"]["value"])
            row["p50_ms"].append(found["total"]["p50"]["value"])
    return rows


def calibration(out: Path) -> list[dict[str, Any]]:
    """What `edgeqlora ranks` takes of tiny.en on 64 read sentences, start-up and pictures included."""
    file, start_s = out / "ranks.json", time.monotonic()
    edgeqlora("ranks", "-m", TINY, "--train", LIBRISPEECH / "train.jsonl", "--clips", 64, "-o", file, "--overwrite")
    seconds, content = round(time.monotonic() - start_s, 1), json.loads(file.read_text())
    peak_mib = content["calibration"]["peak_rss_mib"]
    return [{"seconds": seconds, "peak_rss_mib": peak_mib, "agreement_of_halves": content["agreement_of_halves"]}]


def regulariser(out: Path) -> list[dict[str, Any]]:
    """Processor time of the entropy regulariser beside that of a step: forward and backward of 16 clips with 8 tokens each.

    In this process, on one thread: the clock of a busy machine cannot tell a difference of 2 %.
    """
    import torch

    from edgeqlora.lora.adapters import load_base, with_adapters
    from edgeqlora.lora.entropy import AdapterEntropy
    from edgeqlora.settings import make_settings

    def seconds(work: Callable[[], object], times: int) -> float:
        taken = []
        for _ in range(times):
            begun = time.process_time()
            work()
            taken.append(time.process_time() - begun)
        return statistics.median(taken)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name, model, window_s in (("embedded", DEMO / "model", 3.0), ("whisper-tiny.en", TINY, 2.0)):
        learner = load_base(make_settings({"base_model": str(model), "train": "-", "output": str(out)}))
        with_adapters(make_settings({"base_model": str(model), "train": "-", "output": str(out)}), learner, 10)
        entropy = AdapterEntropy(learner.model)
        with torch.no_grad():
            for parameter in learner.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn_like(parameter))  # at B = 0 the regulariser has nothing to do
        frames = torch.randn(16, *learner.processor.feature_shape(window_s)).numpy()
        inputs = learner.inputs(frames, [frames.shape[-1]] * 16)
        inputs["decoder_input_ids"] = inputs["decoder_input_ids"][:, :8]

        def step() -> None:
            with learner.window(inputs):  # noqa: B023
                learner.loss(learner.model(**inputs), inputs, inputs["decoder_input_ids"]).backward()  # noqa: B023

        step_s, added_s = seconds(step, 5), seconds(partial(entropy.add_gradient, 0.001, 2.0), 20)
        n = len(entropy)
        share = round(added_s / step_s, 4)
        rows.append(
            {"model": name, "adapters": n, "step_ms": 1e3 * step_s, "regulariser_ms": 1e3 * added_s, "share": share}
        )
    return rows


def windows(out: Path) -> list[dict[str, Any]]:
    """tiny.en as it is, and tuned once in 2, 5, 10 and 30 s windows: WER of clips that fit, in each window and in 30 s, and
    what it says where nobody speaks: in two noises that it was trained to be silent at, and in two that it never heard."""
    if not (out / "train.jsonl").exists():
        write_mixed(out)
    flags = ["-m", TINY, "--train", out / "train.jsonl", "--batch-size", 8, "--steps", 80, "--learning-rate", "3e-4"]
    arms = {"base": None, "2, 5, 10, 30 s": ["--window-s", "2,5,10,30", "--window-draw", "any"]}
    rows: list[dict[str, Any]] = []
    for name, extra in arms.items():
        source = TINY if extra is None else out / name.replace(",", "").replace(" ", "")
        if extra is not None:
            trained(source, *flags, *extra)
        for window in WINDOWS:
            own = out / f"{source.name}-{window}.json"
            scored(source, out / f"fits-{window}.jsonl", own, "--window-s", window, "--normaliser", "whisper-english")
        for window in WINDOWS:
            fitting = {Path(row["audio"]).name for row in read_rows(out / f"fits-{window}.jsonl")}
            for asked in sorted({window, 30}):
                said = read_rows(out / f"{source.name}-{asked}.jsonl")
                counted = [row for row in said if Path(row["audio"]).name in fitting]
                words = sum(row["n_reference"] for row in counted)
                share = round(100 * sum(row["errors"] for row in counted) / words, 2)
                rows.append(
                    {"arm": name, "clips_that_fit_s": window, "window_s": asked, "n_words": words, "wer": share}
                )
            for kinds in NOISES:
                report = scored(
                    source,
                    out / f"{kinds}-{window}.jsonl",
                    out / f"{source.name}-{kinds}-{window}.json",
                    "--window-s",
                    window,
                )
                rows.append(
                    {
                        "arm": name,
                        "noise": kinds,
                        "window_s": window,
                        "false_words_per_minute": report["false_words"]["value"],
                    }
                )
    # Time: the same clips of up to 2 s, by bundles of one window each.
    merged = Path(f"{source}-merged")
    if not merged.exists():
        edgeqlora("merge", source, "--candidate", "dequantised", "-o", merged)
    bundles = [out / f"bundle-{window}" for window in WINDOWS]
    for window, bundle in zip(WINDOWS, bundles, strict=True):
        if not bundle.exists():
            typed = ["--target", "cpu", "--window-s", window, "-d", out / "fits-2.jsonl", "-o", bundle]
            edgeqlora("export", merged, *typed)
    times = benched(bundles, out, 30)
    return rows + [{"arm": name, "window_s": w, **found} for w, found in zip(WINDOWS, times, strict=True)]


WINDOWS = (2, 5, 10, 30)
NOISES = {"heard": ("kitchen", "doing_the_dishes"), "new": ("exercise_bike", "running_tap")}


def noise_pieces(name: str, seconds: float, every: float) -> list[dict[str, Any]]:
    """Rows of pieces of a recording of a minute."""
    audio = str(NOISE / "audio" / f"{name}.flac")
    starts = [number * every for number in range(int((60 - seconds) // every) + 1)]
    return [{"audio": audio, "text": "", "start": s, "end": s + seconds, "duration": seconds} for s in starts]


def write_mixed(out: Path) -> None:
    """Read sentences whole, digits, and half of the speakers of misc-sentences; noise with an empty text. What is left is the test."""

    def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
        found = read_rows(folder / name)
        keys = ("text", "duration", "speaker")
        return [
            {"audio": str(folder / row["audio"])}
            | {key: str(row[key]) if key == "speaker" else row[key] for key in keys}
            for row in found
        ]

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        (out / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    draw = random.Random(0)
    misc = rows_of(MISC, "manifest.jsonl")
    speakers = sorted({row["speaker"] for row in misc})
    kept = set(draw.sample(speakers, len(speakers) // 2))
    of_test = [
        *rows_of(LIBRISPEECH, "test.jsonl"),
        *rows_of(FSDD, "test.jsonl")[:100],
        *(row for row in misc if row["speaker"] not in kept),
    ]
    for window in WINDOWS:
        write(f"fits-{window}.jsonl", [row for row in of_test if row["duration"] <= window - 0.3])
        for kinds, names in NOISES.items():
            length = window - 0.3
            write(f"{kinds}-{window}.jsonl", [piece for name in names for piece in noise_pieces(name, length, length)])
    quiet = [piece for name in NOISES["heard"] for seconds in (1.7, 9.7) for piece in noise_pieces(name, seconds, 4)]
    digits = draw.sample(rows_of(FSDD, "train.jsonl"), 100)
    spoken = [*rows_of(LIBRISPEECH, "train.jsonl"), *digits, *(row for row in misc if row["speaker"] in kept)]
    write("train.jsonl", [*spoken, *quiet])


def tune(model: str, out: Path) -> list[dict[str, Any]]:
    """--tune 20 with the defaults as they are, then both settings with three new seeds on a test set that no run chose by."""
    speech = DEMO / "speech" if model == "embedded" else ROOT / "runs" / "sentences"
    common: list[Any] = ["--train", speech / "train.jsonl", "--dev", speech / "dev.jsonl"]
    common += {
        "embedded": ["-m", DEMO / "model", "--window-s", 3, "--steps", 60],
        "tiny.en": ["-m", TINY, "--window-s", 5, "--steps", 20, "--eval-samples", 40],
    }[model]
    search = out / "run.tune"
    if not (search / "best.toml").exists():
        begun = time.monotonic()
        edgeqlora("train", *common, "--no-low-memory", "--tune", 20, "-o", out / "run")
        (search / "minutes").write_text(f"{(time.monotonic() - begun) / 60:.1f}")
    rows = []
    for arm, chosen in {"defaults": common, "best": ["--config", search / "best.toml"]}.items():
        for seed in (1, 2, 3):
            folder = out / f"{arm}-{seed}"
            card = trained(folder, *chosen, "--no-low-memory", "--seed", seed)
            report = scored(folder, speech / "test.jsonl", Path(f"{folder}.json"), "--normaliser", "whisper-english")
            rows.append(
                {
                    "arm": arm,
                    "seed": seed,
                    "minutes_of_search": float((search / "minutes").read_text()),
                    "dev_wer": card["dev_wer"]["value"],
                    "dev_loss": card["dev_loss"]["value"],
                    "test_wer": wer(report),
                    "test_perplexity": report["perplexity"]["value"],
                }
            )
    return rows


TABLES: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "calibration": calibration,
    "forgetting": forgetting,
    "layers": layers,
    "regulariser": regulariser,
    "tune-embedded": partial(tune, "embedded"),
    "tune-tiny.en": partial(tune, "tiny.en"),
    "windows": windows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=list(TABLES))
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for models and reports")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = TABLES[arguments.table](arguments.output)
    kept = Path(__file__).with_name("tables") / f"{arguments.table}.jsonl"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(kept.read_text())


if __name__ == "__main__":
    main()
