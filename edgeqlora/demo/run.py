"""`edgeqlora demo`: the whole line on the embedded model and speech, each step as the command that it is."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeqlora.demo import model_dir, speech_dir
from edgeqlora.errors import UserError
from edgeqlora_jetson.files import check_output_folder, write_json
from edgeqlora_jetson.pyz import PYZ_NAME
from edgeqlora_jetson.screen import command_line

SCHEMA, SUMMARY = "edgeqlora.demo/1", "summary.json"

TRAINING: dict[str, dict[str, Any]] = {
    "whisper": {"steps": 240, "ranks": "uniform:8", "eval_every": 80},
    "wav2vec2": {"steps": 600, "ranks": "uniform:16", "eval_every": 200},
}
"""Settings of the demo run by embedded model: a minute on two cores, and ten."""

NORMALISER = "basic-unicode"

SHARED: dict[str, Any] = {
    "window_s": "3",
    "batch_size": 16,
    "learning_rate": 3e-3,
    "warmup_ratio": 0.1,
    "eval_samples": 0,
    "seed": 42,
    "low_memory": False,
}


def run_demo(
    output: Path, name: str = "whisper", *, overwrite: bool = False, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Train, merge, export and measure below `output`; returns the summary that is also written to summary.json.

    name: of the embedded model. Raises UserError for another one, and if `output` exists and is not to be overwritten.
    """
    if name not in TRAINING:
        raise UserError(f"--model {name}: allowed is {' or '.join(TRAINING)}")
    if not output.is_dir() or any(output.iterdir()):
        check_output_folder(output, overwrite)
    # The mark by which a later --overwrite knows the folder as a demo's.
    write_json(output / SUMMARY, {"schema": SCHEMA, "is_complete": False})
    start_s = time.monotonic()
    say(
        f"EdgeQLoRA demo: a tiny {name} model, pre-trained on some synthetic voices, learns other voices and noise.\n"
        "Model and speech were made by the project; no network is used. "
        f"About {'three' if name == 'whisper' else 'ten'} minutes on two cores."
    )
    model, speech, training = str(model_dir(name)), speech_dir(), {**SHARED, **TRAINING[name]}
    train_data, dev, test = (str(speech / f"{split}.jsonl") for split in ("train", "dev", "test"))
    adapter, merged, bundle = output / "adapter", output / "merged", output / "bundle"

    _step(
        say,
        1,
        "WER before",
        command_line("edgeqlora", "evaluate", model, "-d", test, "--window-s", training["window_s"]),
    )
    before = _evaluate(model, test, output / "before.json", [float(training["window_s"])])
    say(f"  {_wer_line(before)}")

    flags = " ".join(f"--no-{_flag(k)}" if v is False else f"--{_flag(k)} {v}" for k, v in training.items())
    command = command_line("edgeqlora", "train", "-m", model, "--train", train_data, "--dev", dev, "-o", adapter)
    _step(say, 2, "train", f"{command} {flags}")
    from edgeqlora.settings import make_settings
    from edgeqlora.train import train

    settings = {"base_model": model, "train": train_data, "dev": dev, "output": str(adapter), **training}
    card = train(make_settings(settings), overwrite=True)
    figures = card["figures"]
    say(
        f"  {card['steps']} steps in {figures['wall_time']['value']:.0f} s, {figures['samples_per_s']['value']:.0f} clips/s, "
        f"{figures['trainable_parameters']['value']:,} trained parameters, peak memory "
        f"{(figures['peak_rss']['value'] or 0) / 1024:.2f} GiB"
    )

    _step(say, 3, "merge", command_line("edgeqlora", "merge", adapter, "-o", merged))
    from edgeqlora.merge import merge

    chosen = merge(adapter, merged, overwrite=True, say=say)["chosen"]
    say(f"  kept: adapter on the {chosen} base")

    _step(
        say,
        4,
        "export",
        command_line(
            "edgeqlora",
            "export",
            merged,
            "--target",
            "cpu",
            "-d",
            test,
            "--eval-clips",
            100,
            "--margin-s",
            "off",
            "-o",
            bundle,
        ),
    )
    from edgeqlora.export import export

    # Whole windows in fp32: a margin and int8 would be chosen on clips of the test set.
    summary = export(
        str(merged), bundle, target="cpu", data=test, n_eval=100, margin_s="off", precision="fp32", overwrite=True,
        say=lambda text: None,
    )  # fmt: skip
    for gate in summary["gates"]:
        say(f"  gate {gate['name']}: {gate['measured']:.2g} (limit {gate['limit']:.2g})")

    _step(say, 5, "WER after, with the bundle's own runner", command_line("edgeqlora", "evaluate", bundle, "-d", test))
    after = _evaluate(str(bundle), test, output / "after.json", None)
    say(f"  {_wer_line(after)}")

    words = ["bench", "--repeats", "2", "--output", str(output / "report.json")]
    _step(say, 6, "bench", command_line("python", bundle / PYZ_NAME, *words))
    # As on the board: the runner in the bundle, in a process of its own (its memory is then its own, too).
    if subprocess.run([sys.executable, str(bundle / PYZ_NAME), *words], check=False).returncode:
        raise UserError("bench failed: see the message above")
    result = {
        "schema": SCHEMA,
        "is_complete": True,
        "wer_before": before["wer"][NORMALISER],
        "wer_after": after["wer"][NORMALISER],
        "seconds": round(time.monotonic() - start_s, 1),
    }
    write_json(output / SUMMARY, result)
    say(
        f"\nWER {result['wer_before']['value']:.1f} % before, {result['wer_after']['value']:.1f} % after "
        f"({result['wer_after']['n_reference']} words of {after['data']['n_clips']} held-out clips, normaliser {NORMALISER}), "
        f"{result['seconds']:.0f} s in all."
    )
    return result


def _evaluate(source: str, data: str, output: Path, windows_s: list[float] | None) -> dict[str, Any]:
    from edgeqlora.evaluate import evaluate

    return evaluate(source, data, windows_s=windows_s, normalisers=[NORMALISER], output=output, batch_size=32)


def _wer_line(report: dict[str, Any]) -> str:
    wer, cer = report["wer"][NORMALISER], report["cer"][NORMALISER]
    return (
        f"WER {wer['value']:.2f} % ({wer['substitutions']} substitutions, {wer['deletions']} deletions, "
        f"{wer['insertions']} insertions in {wer['n_reference']} words), CER {cer['value']:.2f} %, "
        f"{report['data']['n_clips']} clips"
    )


def _flag(field: str) -> str:
    return field.replace("_", "-")


def _step(say: Callable[[str], None], number: int, title: str, command: str) -> None:
    say(f"\n[{number}/6] {title}\n  $ {command}")
