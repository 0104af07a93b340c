"""`edgeqlora train`: data and base model in, adapter folder (or fully tuned model folder) out."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from edgeqlora.card import Card, measured, missing, write_card
from edgeqlora.data.batching import BucketSampler, MixedSampler
from edgeqlora.data.manifest import evenly
from edgeqlora.errors import UserError
from edgeqlora.settings import TrainSettings, write_settings
from edgeqlora.training import checkpoint
from edgeqlora.training.arguments import computed_with, per_device_batch, training_arguments
from edgeqlora.training.dev_score import DevScore, no_dev, verify_choice
from edgeqlora.training.general import Canary, label_replay, with_replay
from edgeqlora.training.partial_run import CONFIG, inputs_of, open_partial, partial_folder, verify_output
from edgeqlora.training.resources import EnergyMeter, peak_vram
from edgeqlora.training.training_data import Prepared, augmentation, calibration_clips, drawn, prepare
from edgeqlora_jetson.board.machine import measure_peak_rss_mib
from edgeqlora_jetson.files import atomic_folder, read_json, sha256_file, verify_replaceable, write_json

ADAPTER_LOG = "adapters.jsonl"
"""Entropy, effective rank and size of every adapter at each evaluation and at the end."""

Watch = Callable[[int, dict[str, float]], None]


def train(
    settings: TrainSettings,
    *,
    resume: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
    quiet: bool = False,
) -> Card:
    """Run (or resume) a training run and return its card; with `dry_run`, two steps and what the run would cost.

    watch: called after each evaluation with the step and its figures; what it raises ends the run.

    Raises UserError for bad input before any weights are loaded or anything is written. Under torchrun each process
    calls this; only the first writes and prints.
    """
    import torch

    from edgeqlora.models.family import check_source, load_processor
    from edgeqlora.models.fewer_layers import parse_layers
    from edgeqlora.training.malloc import return_freed_memory

    if settings.low_memory and not torch.cuda.is_available():
        return_freed_memory()
    is_first = int(os.environ.get("RANK", "0")) == 0
    console = Console(stderr=True, quiet=quiet or not is_first, highlight=False, soft_wrap=True, markup=False)
    settings = with_replay(settings)
    if settings.patience and settings.ranks.startswith("adalora:"):
        raise UserError(
            "patience with ranks='adalora:...': before its ranks are found no checkpoint counts; leave it out"
        )
    if resume and settings.ranks.startswith("adalora:"):
        raise UserError(
            "--resume of a run with ranks='adalora:...': what it knows of its ranks is in no checkpoint; start anew"
        )
    output = Path(settings.output)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    per_device = per_device_batch(settings, world_size)
    if not dry_run and (is_first or resume):
        verify_output(settings, output, resume=resume, overwrite=overwrite)
    parse_layers(settings.drop_layers)
    check_source(settings.base_model)
    processor = load_processor(settings.base_model)
    data = prepare(settings, processor, console)
    if not dry_run and output.is_dir():
        verify_replaceable(output, data.audio_folders)
    of_task = settings.batch_size - (data.replay.per_step if data.replay else 0)
    n_steps = settings.steps or max(1, math.ceil((settings.epochs or 3.0) * len(data.rows) / of_task))
    _say_plan(console, settings, data, n_steps, world_size)

    from edgeqlora.data.cache import FeatureCache, default_cache_folder
    from edgeqlora.data.dataset import SpeechDataset
    from edgeqlora.evaluation.recognise import Recogniser
    from edgeqlora.lora.adapters import load_base, with_adapters
    from edgeqlora.training.run_log import canary_text

    verify_choice(settings, data.dev_rows)
    cache_folder = {"auto": default_cache_folder(), "none": None}.get(settings.cache, settings.cache)
    learner = load_base(settings)
    rows, target_ids = list(data.rows), list(data.target_ids)
    if data.replay:
        cache = Path(cache_folder) if cache_folder else None
        target_ids += label_replay(data.replay, learner, settings, data.language, data.sources, cache, console.print)
        rows += data.replay.rows
    dataset = SpeechDataset(
        rows,
        target_ids,
        FeatureCache(processor, cache_folder, max_bytes=round(settings.cache_gib * 2**30)),
        augmentation(settings),
        noises=data.noises,
        rooms=data.rooms,
        seed=settings.seed,
    )
    kept = partial_folder(output) / "dropped_layers.json"
    before = read_json(kept, "layers of an unfinished run") if resume and kept.is_file() else None
    dropped = _without_layers(settings, learner, data, console, before)
    recogniser = Recogniser(learner, data.windows_s, data.language, settings.task, data.tokens_per_s, say=console.print)
    ranks, figures = with_adapters(settings, learner, n_steps)
    _say_model(console, figures)
    scored = evenly(data.dev_rows, settings.eval_samples)
    dev_score = DevScore(recogniser, data.dev_rows, scored, settings) if scored else None
    canary = Canary(settings, data.canary_rows, learner, data.language) if data.canary_rows else None
    if dev_score is not None:
        dev_score.canary = canary
    run = _Run(settings, data, dataset, recogniser, dev_score, n_steps, per_device, console, watch)
    if dry_run:
        estimate = run.estimate()
        return estimate if is_first else {}
    resume_from = open_partial(settings, output, data.sources, resume=resume) if is_first or resume else None
    if is_first and dropped:
        write_json(kept, dropped)
    if canary is not None:
        learner.model.eval()
        file = partial_folder(output) / "canary.json"
        canary.measure_before(file, resumed=resume_from is not None, is_first=is_first)
        console.print(f"  before training{canary_text(canary.before or {}).replace(';', ':', 1)}")
    trainer = run.run(partial_folder(output), resume_from, is_first)
    if not is_first:
        return {}
    figures |= run.figures(trainer, resumed=resume_from is not None)
    return _write_output(
        settings, output, learner, data, trainer, dev_score, canary, ranks, dropped, figures, overwrite
    )


def _without_layers(
    settings: TrainSettings, learner: Any, data: Prepared, console: Console, chosen_before: dict[str, list[int]] | None
) -> dict[str, list[int]]:
    """Take the layers out that the settings name, or choose them on training clips; returns their numbers by stack.

    chosen_before: by the run that is resumed: another machine might choose others.
    """
    from edgeqlora.models.fewer_layers import angular_distances, drop_layers, least_turning, parse_layers

    asked = parse_layers(settings.drop_layers)
    if asked is None:
        return {}
    if isinstance(asked, int) and chosen_before:
        asked = chosen_before
    elif isinstance(asked, int):
        distances = angular_distances(learner, calibration_clips(learner, data, drawn(data.rows, N_LAYER_CLIPS)))
        console.print("  angle that each encoder layer turns, in pi: " + ", ".join(f"{d:.3f}" for d in distances))
        asked = {"encoder": least_turning(distances, asked)}
    n = {stack: len(layers) for stack, layers in learner.layer_stacks().items()}
    drop_layers(learner, asked)
    for stack, numbers in asked.items():
        console.print(f"  taken out of the {n[stack]} {stack} layers: {', '.join(map(str, numbers))}")
    return asked


N_LAYER_CLIPS = 32
"""Clips on which layers to take out are chosen."""


class _Run:
    """One training run: the trainer with what feeds, watches and scores it."""

    def __init__(
        self,
        settings: TrainSettings,
        data: Prepared,
        dataset: Any,
        recogniser: Any,
        dev_score: DevScore | None,
        n_steps: int,
        per_device: int,
        console: Console,
        watch: Watch | None,
    ):
        from edgeqlora.training.run_log import Throughput

        self.settings, self.data, self.dataset, self.recogniser = settings, data, dataset, recogniser
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
            self.recogniser.recognise(sample)
            self.recogniser.cross_entropy(sample)
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

    def _entropy_callbacks(
        self, folder: Path, log_path: Path | None, resume_from: Path | None, is_adalora: bool
    ) -> list[Any]:
        """What watches the entropy of adapters, and pushes it where that is asked for."""
        if self.settings.method == "full" or is_adalora:
            return []
        from edgeqlora.lora.adapters import group_of
        from edgeqlora.lora.entropy import AdapterLog, EntropyRegulariser

        learner, found = self.recogniser.learner, []
        if log_path is not None:
            first = int(resume_from.name.rsplit("-", 1)[1]) if resume_from else 0
            found.append(AdapterLog(learner.model, folder / ADAPTER_LOG, partial(group_of, learner), first))
        if self.settings.entropy_weight:
            found.append(EntropyRegulariser(learner.model, self.settings.entropy_weight))
        return found

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
                *self._entropy_callbacks(folder, log_path, resume_from, is_adalora),
            ],
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


def _write_output(
    settings: TrainSettings,
    output: Path,
    learner: Any,
    data: Prepared,
    trainer: Any,
    dev_score: DevScore | None,
    canary: Canary | None,
    ranks: dict[str, Any],
    dropped: dict[str, list[int]],
    figures: dict[str, Any],
    overwrite: bool,
) -> Card:
    """Assemble the output folder from the best (or last) checkpoint, then remove the checkpoints."""
    from edgeqlora.lora.adapters import base_dtype

    partial, state = partial_folder(output), trainer.state
    # By step, not by the path that the trainer recorded: the folder may have been moved before a resume.
    best = (
        partial / f"checkpoint-{state.best_global_step}"
        if state.best_global_step
        else checkpoint.last_complete(partial)
    )
    assert best is not None, "a finished run has a checkpoint"
    best_step = int(best.name.rsplit("-", 1)[1])
    with atomic_folder(output, overwrite=overwrite, inputs=inputs_of(settings)) as folder:
        out = Path(folder)
        for file in sorted(best.iterdir()):
            if file.name in (
                "adapter_config.json",
                "adapter_model.safetensors",
                "config.json",
                "generation_config.json",
            ) or (
                settings.method == "full" and file.name.startswith("model") and file.suffix in (".safetensors", ".json")
            ):
                shutil.copyfile(file, out / file.name)
        learner.processor.save(out)
        if settings.method != "full" and settings.ranks.startswith("adalora:"):
            from edgeqlora.lora.adalora import to_plain_lora

            ranks = to_plain_lora(out)
        if settings.method == "full":
            config = read_json(out / "config.json", "config.json")
            if "use_cache" in config:  # Trainer switches it off while it trains
                write_json(out / "config.json", {**config, "use_cache": True})
            if learner.model.can_generate():
                learner.model.generation_config.save_pretrained(out)
        for name in ("log.jsonl", ADAPTER_LOG):
            if (partial / name).exists():
                shutil.copyfile(partial / name, out / name)
        if (out / ADAPTER_LOG).exists():
            from edgeqlora.lora.pictures import draw_adapters

            lines = (out / ADAPTER_LOG).read_text(encoding="utf-8").splitlines()
            draw_adapters([json.loads(line) for line in lines], out / ADAPTER_LOG)
        if (partial / "runs").is_dir():
            shutil.copytree(partial / "runs", out / "runs")  # TensorBoard's
        write_settings(settings, out / CONFIG)
        if ranks:
            write_json(out / "ranks.json", {"schema": "edgeqlora.lora.ranks/1", **ranks})
        card = write_card(
            out,
            "adapter" if settings.method != "full" else "model",
            method=settings.method,
            base_model=settings.base_model,
            base_dtype=base_dtype(settings),
            parents=data.sources,
            settings=dataclasses.asdict(settings),
            computed_with=computed_with(settings),
            windows_s=data.windows_s,
            tokens_per_s=data.tokens_per_s,
            language=data.language,
            task=settings.task,
            data={
                "n_train": len(data.rows),
                "train_audio_s": round(sum(data.durations_s), 2),
                "n_dev": len(data.dev_rows),
                "n_skipped_long": data.n_skipped,
                "n_cut_texts": data.n_cut,
                "n_other_script": data.n_other_script,
                "padding": data.padding,
            },
            steps=state.global_step,
            best_step=best_step,
            **(dev_score.card_fields(state.log_history, best_step) if dev_score else no_dev()),
            **({"dropped_layers": dropped} if dropped else {}),
            **({"canary": canary.card_field(state.log_history, best_step)} if canary else {}),
            **({"replay": {"source": settings.replay, "n_clips": len(data.replay.rows)}} if data.replay else {}),
            figures=figures,
            weights={p.name: sha256_file(p) for p in sorted(out.glob("*.safetensors"))},
        )
    shutil.rmtree(partial, ignore_errors=True)
    return card


def _say_plan(console: Console, settings: TrainSettings, data: Prepared, n_steps: int, world_size: int) -> None:
    hours = sum(data.durations_s) / 3600
    windows = ", ".join(f"{w:g}" for w in data.windows_s)
    console.print(
        f"Training {settings.method} on {len(data.rows)} clips ({hours:.2f} h), {n_steps} steps of {settings.batch_size} clips"
        + (f" over {world_size} processes" if world_size > 1 else "")
    )
    console.print(
        f"  window {windows} s: {100 * data.padding['share']:.0f} % of the encoder's frames are padding "
        f"({100 * data.padding['share_in_one_window']:.0f} % in one window, {100 * data.padding['share_at_30_s']:.0f} % at 30 s)"
    )
    import torch

    if settings.optimizer == "paged-adamw-8bit" and not torch.cuda.is_available():
        console.print("  no GPU: the paged optimiser runs unpaged")


def _say_model(console: Console, figures: dict[str, Any]) -> None:
    trainable, size = figures["trainable_parameters"], figures["compression_size"]
    console.print(
        f"  {trainable['value']:,} of {figures['parameters']['value']:,} parameters are trained "
        f"({100 * trainable['share']:.2f} %); model held in {size['held_mib']:.0f} MiB instead of {size['fp32_mib']:.0f}"
    )
