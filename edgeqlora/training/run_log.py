"""What a user sees of a training run while it runs, and the same as JSONL."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from transformers import TrainerCallback

from edgeqlora.training.machine.resources import EnergyMeter, rss_mib
from edgeqlora_jetson.files import write_text


class Throughput:
    """Clips per second of training alone: evaluation, checkpoints and the first step (allocations) left out."""

    def __init__(self, clips_per_step: int):
        self.clips_per_step = clips_per_step
        self.step_s: list[float] = []
        self._last: float | None = None

    def resume(self) -> None:
        """Start timing anew: call after what is not training."""
        self._last = time.perf_counter()

    def step(self) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.step_s.append(now - self._last)
        self._last = now

    @property
    def samples_per_s(self) -> float | None:
        """Mean over all timed steps but the first."""
        timed = self.step_s[1:] or self.step_s
        return self.clips_per_step * len(timed) / sum(timed) if timed else None


class RunLog(TrainerCallback):
    """Progress bar on a terminal, one line every 30 s elsewhere, and log.jsonl in the output folder."""

    def __init__(
        self,
        path: Path | None,
        console: Console,
        throughput: Throughput,
        energy: EnergyMeter,
        total_steps: int,
    ):
        self.path, self.console, self.throughput, self.energy = path, console, throughput, energy
        self.total_steps = total_steps
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=total_steps, text="")
        self._loss = math.nan
        self._error_rate = ""
        self._said_s = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.throughput.resume()
        self._bar.update(self._task, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.throughput.step()
        self.energy.add_up()
        text = self._line(state)
        self._bar.update(self._task, completed=state.global_step, text=text)
        if self._bar.disable and time.monotonic() - self._said_s > 30:
            self._said_s = time.monotonic()
            self.console.print(f"  {text}")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if "train_runtime" in (logs or {}):
            return  # transformers' totals of this process; ours, which know of resuming, are in the card
        row = {"step": state.global_step, "time_utc": round(time.time(), 3), **(logs or {})}
        row.pop("eval_rank", None)
        row.pop("epoch", None)  # the sampler's run is one long epoch to the trainer; ours are in the card
        if "eval_cer" in row:
            row.setdefault("eval_wer", None)  # texts without words to count: the card has the reason
        if "loss" in row:
            self._loss = row["loss"]
            row["samples_per_s"] = self.throughput.samples_per_s
            row["rss_mib"] = round(rss_mib(), 1)
        row = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        self.throughput.resume()
        if metrics and "eval_cer" in metrics:
            rates = [
                (name, metrics[f"eval_{name.lower()}"]) for name in ("WER", "CER") if f"eval_{name.lower()}" in metrics
            ]
            self._error_rate = f"{rates[0][0]} {rates[0][1]:.1f} %"
            shown = ", ".join(f"{name} {rate:.2f} %" for name, rate in rates)
            self.console.print(
                f"  step {state.global_step:>5}: dev {shown}, "
                f"loss {loss_text(metrics)} ({metrics['eval_clips']} clips, {metrics['eval_seconds']:.1f} s"
                + (
                    f", {n} repeated themselves or ran into the limit of tokens)"
                    if (n := metrics["eval_incomplete"])
                    else ")"
                )
                + canary_text(metrics)
            )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.throughput.resume()

    def close(self) -> None:
        """Put the terminal in order; also after an error or Ctrl-C."""
        self._bar.stop()

    def _line(self, state: Any) -> str:
        parts = [f"{state.global_step}/{self.total_steps}", f"loss {self._loss:.3f}"]
        if self._error_rate:
            parts.append(self._error_rate)
        if speed := self.throughput.samples_per_s:
            left_s = int((self.total_steps - state.global_step) * self.throughput.clips_per_step / speed)
            left = f"{left_s // 60}:{left_s % 60:02d} left"
            parts += [f"{speed:.1f} clips/s", f"{rss_mib() / 1024:.2f} GiB", left]
        return ", ".join(parts)


def loss_text(figures: Mapping[str, float], digits: int = 3) -> str:
    """The loss on dev for a terminal; "--" where no dev clip fits a window."""
    return format(figures["eval_loss"], f".{digits}f") if "eval_loss" in figures else "--"


def canary_text(figures: dict[str, Any]) -> str:
    """What an evaluation says of general speech; "" without a canary."""
    if "eval_canary_loss" not in figures:
        return ""
    rate = "wer" if "eval_canary_wer" in figures else "cer"
    return f"; canary {rate.upper()} {figures[f'eval_canary_{rate}']:.2f} %, loss {figures['eval_canary_loss']:.3f}"


def truncate_log(path: Path, last_step: int) -> None:
    """Drop rows after `last_step`, which a resumed run is about to write again, and a line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get("step", 0) <= last_step:
            kept.append(line)
    write_text(path, "".join(line + "\n" for line in kept))
