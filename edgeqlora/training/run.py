"""One training run: transformers' trainer with what feeds, watches and scores it."""

from __future__ import annotations

import errno
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from edgeqlora.card import Card, measured, missing
from edgeqlora.data.batching import BucketSampler, MixedSampler
from edgeqlora.errors import UserError
from edgeqlora.settings import TrainSettings
from edgeqlora.training.arguments import training_arguments
from edgeqlora.training.dev_score import DevScore
from edgeqlora.training.machine.resources import EnergyMeter, peak_vram
from edgeqlora.training.output import ACTIVATION_LOG, ADAPTER_LOG
from edgeqlora.training.training_data import Prepared
from edgeqlora_jetson.board.machine import measure_peak_rss_mib

if TYPE_CHECKING:
    from edgeqlora.lora.dynamic.reallocate import Reallocation

Watch = Callable[[int, dict[str, float]], None]


class Run:
    """One training run: the trainer with what feeds, watches and scores it."""

    def __init__(
        self,
        settings: TrainSettings,
        data: Prepared,
        dataset: Any,
        recogniser: Any,
        dev_score: DevScore | None,
        ranks: dict[str, Any],
        n_steps: int,
        per_device: int,
        console: Console,
        watch: Watch | None,
    ):
        from edgeqlora.training.run_log import Throughput

        self.settings, self.data, self.dataset, self.recogniser = settings, data, dataset, recogniser
        self.ranks = ranks
        self.scored, self.dev_score = list(dev_score.rows) if dev_score else [], dev_score
        self.n_steps, self.per_device, self.console, self.watch = n_steps, per_device, console, watch
        self.eval_every = settings.eval_every or max(10, math.ceil(n_steps / 10))
        self.throughput, self.energy = Throughput(settings.batch_size), EnergyMeter()
        self.wall_s = 0.0

    def run(self, folder: Path, resume_from: Path | None, is_first: bool) -> Any:
        """Train to the end (or early stop) with checkpoints in `folder`; returns the trainer."""
        from edgeqlora.training.run_log import truncate_log

        log_path = folder / "log.jsonl" if is_first else None
        if log_path is not None:
            truncate_log(log_path, int(resume_from.name.rsplit("-", 1)[1]) if resume_from else 0)
        return self._train(folder, self.n_steps, log_path, resume_from, save=True)

    def estimate(self) -> Card:
        """Two steps on real data, and what the whole run would cost on this machine. Writes nothing."""
        from edgeqlora.evaluation.recognise import BATCH_SIZE

        with tempfile.TemporaryDirectory(prefix="edgeqlora-dry-run-") as folder:
            self._train(Path(folder), 2, None, None, save=False)
        step_s, vram = self.throughput.step_s[-1], peak_vram()
        eval_s, eval_vram = 0.0, missing("no dev data was given")
        if self.scored:
            sample = self.scored[:BATCH_SIZE]
            start_s = time.perf_counter()
            self.recogniser.learner.model.eval()
            self.recogniser.recognise(sample, with_losses=True)
            eval_s = (time.perf_counter() - start_s) / len(sample) * len(self.scored)
            eval_vram = peak_vram()
        n_evals = math.ceil(self.n_steps / self.eval_every) if self.scored else 0
        total_s = self.n_steps * step_s + n_evals * eval_s
        figures = {
            "step": measured(round(step_s, 3), "s", how="second of two steps"),
            "evaluation": measured(round(eval_s, 1), "s") if self.scored else missing("no dev data was given"),
            "estimated_total": measured(round(total_s, 1), "s", steps=self.n_steps, evaluations=n_evals),
            "peak_rss": measured(round(measure_peak_rss_mib(), 1), "MiB"),
            "peak_vram": vram,
            "peak_vram_evaluation": eval_vram,
        }
        self.console.print(
            f"Dry run: two steps done, nothing written. {self.n_steps} steps and {n_evals} evaluations would take about "
            f"{total_s / 60:.1f} min and {measure_peak_rss_mib() / 1024:.2f} GiB of memory on this machine."
        )
        if vram["value"] is not None:
            self.console.print(
                f"  of the GPU's memory: {vram['value']:,.0f} MiB for training, "
                + (f"{eval_vram['value']:,.0f} MiB for evaluation" if self.scored else "no evaluation without dev data")
            )
        return Card(figures=figures)

    def figures(self, trainer: Any, resumed: bool) -> dict[str, Any]:
        """What the run measured, for the card."""
        speed = self.throughput.samples_per_s
        scope = "since the resume only, not the whole run" if resumed else "the whole run with its evaluations"
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return {
            "samples_per_s": measured(
                round(speed, 3), "clips/s", how="training steps, without evaluation and checkpoints"
            )
            if speed
            else missing("no step was timed in this process"),
            "peak_rss": measured(
                round(measure_peak_rss_mib(), 1), "MiB", how="VmHWM: the whole process with its libraries"
            ),
            "peak_vram": peak_vram(),
            "wall_time": measured(round(self.wall_s, 2), "s", how=scope, resumed=resumed),
            "energy": {**self.energy.read(), "how": scope},
            "final_loss": measured(losses[-1], "nats per token") if losses else missing("no step was logged"),
        }

    def _of_adapters(
        self, folder: Path, log_path: Path | None, resume_from: Path | None
    ) -> tuple[list[Any], Reallocation | None]:
        """What watches the entropy of LoRA adapters, pushes it and moves their ranks where that is asked for."""
        from edgeqlora.lora.adapters import group_of
        from edgeqlora.lora.dynamic.reallocate import Reallocation, rule_of
        from edgeqlora.lora.entropy import AdapterLog, EntropyRegulariser
        from edgeqlora.lora.ranks import Ranks

        settings, model = self.settings, self.recogniser.learner.model
        first = int(resume_from.name.rsplit("-", 1)[1]) if resume_from else 0
        heard = self._activation_log(folder, first) if log_path is not None and settings.entropy_clips else None
        if settings.method not in ("qlora", "lora"):
            return [heard] if heard else [], None
        group = partial(group_of, self.recogniser.learner)
        log = AdapterLog(model, folder / ADAPTER_LOG, group, first) if log_path is not None else None
        found: list[Any] = [EntropyRegulariser(model, settings.entropy_weight)] if settings.entropy_weight else []
        mover = None
        if settings.moves_ranks():
            ranks = Ranks(self.ranks["rank_pattern"], self.ranks["alpha_pattern"], settings.ranks)

            def told(step: int, taken_out: Mapping[str, float]) -> None:
                if log is not None:
                    log.write(step, taken_out)
                if heard is not None:
                    heard.write(step)

            mover = Reallocation(model, rule_of(settings.ranks), ranks, group, self.n_steps, settings.seed, told)
            found.append(mover)
        return [*found, *filter(None, (log, heard))], mover

    def _activation_log(self, folder: Path, first_step: int) -> Any:
        from edgeqlora.lora.adapters import adapted_linears
        from edgeqlora.lora.dynamic.activations import ActivationLog
        from edgeqlora.training.training_data import calibration_clips, drawn

        learner, chosen = self.recogniser.learner, drawn(self.data.rows, self.settings.entropy_clips)
        # With adapters around them linears are named `base_layer`, and A and B are linears too.
        groups = {
            name.removesuffix(".base_layer"): group
            for group, names in adapted_linears(learner).items()
            for name in names
            if ".lora_" not in name
        }
        clips = partial(calibration_clips, learner, self.data, chosen)
        return ActivationLog(learner, groups, clips, len(chosen), folder / ACTIVATION_LOG, first_step)

    def _sampler(self, n_steps: int) -> BucketSampler | MixedSampler:
        data, settings, replay = self.data, self.settings, self.data.replay
        of_task = settings.batch_size - (replay.per_step if replay else 0)
        is_any = settings.window_draw == "any"
        task = BucketSampler(data.durations_s, data.windows_s, of_task, n_steps, settings.seed, is_any)
        if replay is None:
            return task
        general = BucketSampler(replay.durations_s, replay.windows_s, replay.per_step, n_steps, settings.seed + 1)
        return MixedSampler(task, general)

    def _train(self, folder: Path, n_steps: int, log_path: Path | None, resume_from: Path | None, save: bool) -> Any:
        from transformers import EarlyStoppingCallback, PrinterCallback

        from edgeqlora.lora.adalora import Allocation, asked_rank, final_step, orthogonality
        from edgeqlora.training.run_log import RunLog
        from edgeqlora.training.trainer import EveryAdapterLearns, SpeechTrainer, stopped_early

        settings = self.settings
        is_adalora = settings.method != "full" and asked_rank(settings.ranks) is not None
        of_adapters, mover = self._of_adapters(folder, log_path, resume_from)
        run_log = RunLog(log_path, self.console, self.throughput, self.energy, n_steps)
        trainer = SpeechTrainer(
            learner=self.recogniser.learner,
            args=training_arguments(
                settings,
                folder,
                n_steps,
                self.per_device,
                self.eval_every,
                has_dev=bool(self.scored),
                save=save,
            ),
            data_collator=self.recogniser.decoder.collate,
            train_dataset=self.dataset,
            eval_dataset=self.scored or None,
            sampler=self._sampler(n_steps),
            evaluate_now=self.dev_score,
            watch=self.watch,
            callbacks=[
                run_log,
                *([EveryAdapterLearns()] if settings.method != "full" else []),
                *([Allocation()] if is_adalora else []),
                *of_adapters,
            ],
            before_resume=mover.take_ranks if mover else None,
            penalty=partial(orthogonality, self.recogniser.learner.model) if is_adalora else None,
            not_before=final_step(n_steps) if is_adalora else 0,
        )
        trainer.remove_callback(PrinterCallback)
        if settings.patience and self.scored and save:
            trainer.add_callback(EarlyStoppingCallback(settings.patience))
        start_s = time.monotonic()
        ended = stopped_early(resume_from, settings.patience) if resume_from and settings.patience else None
        try:
            if ended is not None:
                trainer.state = ended
            else:
                trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        except UserError as error:
            # A data loader process wraps the message in its own traceback.
            if "Original Traceback" not in str(error):
                raise
            raise UserError(str(error).rstrip().splitlines()[-1].split(": ", 1)[-1]) from None
        except Exception as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            if not full and not (type(error).__name__ == "SafetensorError" and "while serializing" in str(error)):
                raise
            raise UserError(
                f"training stopped, a checkpoint cannot be written: {error}: make room, "
                "then run the same command with --resume"
            ) from error
        finally:
            run_log.close()
        self.wall_s = time.monotonic() - start_s
        return trainer
