"""`edgeqlora train`: data and base model in, adapter folder (or fully tuned model folder) out."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from edgeqlora.card import Card
from edgeqlora.data.manifest import evenly
from edgeqlora.errors import UserError
from edgeqlora.settings import TrainSettings
from edgeqlora.training.arguments import per_device_batch
from edgeqlora.training.dev_score import DevScore, verify_choice
from edgeqlora.training.general import Canary, label_replay, with_replay
from edgeqlora.training.output import write_output
from edgeqlora.training.partial_run import open_partial, partial_folder, verify_output
from edgeqlora.training.run import Run, Watch
from edgeqlora.training.training_data import Prepared, augmentation, calibration_clips, drawn, prepare
from edgeqlora_jetson.files import read_json, verify_replaceable, write_json


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
    from edgeqlora.models.placement import parse_placement
    from edgeqlora.training.machine.malloc import return_freed_memory

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
    parse_placement(settings.adapt)
    check_source(settings.base_model)
    processor = load_processor(settings.base_model)
    data = prepare(settings, processor, console)
    if not dry_run and output.is_dir():
        verify_replaceable(output, data.audio_folders)
    of_task = settings.batch_size - (data.replay.per_step if data.replay else 0)
    n_steps = settings.steps or max(1, math.ceil((settings.epochs or 3.0) * len(data.rows) / of_task))
    _say_plan(console, settings, data, n_steps, world_size)

    from edgeqlora.lora.dynamic.reallocate import verify_steps

    verify_steps(settings, n_steps, world_size)
    from edgeqlora.data.cache import FeatureCache, default_cache_folder
    from edgeqlora.data.dataset import SpeechDataset
    from edgeqlora.evaluation.recognise import Recogniser
    from edgeqlora.lora.adapters import load_base, with_adapters
    from edgeqlora.training.run_log import canary_text

    verify_choice(settings, data.dev_rows, data.windows_s)
    cache_folder = {"auto": default_cache_folder(), "none": None}.get(settings.cache, settings.cache)
    learner = load_base(settings)
    rows, target_ids = list(data.rows), list(data.target_ids)
    if data.replay:
        cache = Path(cache_folder) if cache_folder else None
        target_ids += label_replay(data.replay, learner, settings, data.language, data.sources, cache, console.print)
        rows += data.replay.rows
    if data.n_empty:
        learner.allow_empty_texts()
        console.print(f"  {data.n_empty} clips have an empty text: where nobody speaks the model may say nothing")
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
    run = Run(settings, data, dataset, recogniser, dev_score, ranks, n_steps, per_device, console, watch)
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
    return write_output(settings, output, learner, data, trainer, dev_score, canary, ranks, dropped, figures, overwrite)


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
