"""TrainSettings in the words of transformers' TrainingArguments."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora.settings import TrainSettings


def per_device_batch(settings: TrainSettings, world_size: int) -> int:
    pieces = world_size * settings.gradient_accumulation
    if settings.batch_size % pieces:
        raise UserError(
            f"batch_size={settings.batch_size} cannot be divided among {world_size} process(es) x "
            f"{settings.gradient_accumulation} accumulation step(s): give a multiple of {pieces}"
        )
    return settings.batch_size // pieces


def _optimizer(settings: TrainSettings) -> str:
    import torch

    paged = settings.optimizer == "paged-adamw-8bit" or (
        settings.optimizer == "auto"
        and settings.method != "full"
        and not settings.moves_ranks()  # the means of the 8-bit optimiser are packed
        and torch.cuda.is_available()
    )
    return "paged_adamw_8bit" if paged else "adamw_torch"


def computed_with(settings: TrainSettings) -> dict[str, str]:
    """What `auto` came to on this machine: device by name, precision, optimiser."""
    import torch

    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "precision": settings.chosen_precision(),
        "optimizer": _optimizer(settings),
    }


def training_arguments(
    settings: TrainSettings,
    work: Path,
    n_steps: int,
    per_device: int,
    eval_every: int,
    *,
    has_dev: bool,
    save: bool,
) -> Any:
    import torch
    from transformers import TrainingArguments

    precision = settings.chosen_precision()
    on_gpu = torch.cuda.is_available()
    evaluates = has_dev and save
    arguments = TrainingArguments(
        output_dir=str(work),
        max_steps=n_steps,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.resolved_learning_rate(),
        optim=_optimizer(settings),
        weight_decay=settings.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(settings.warmup_ratio * n_steps),
        max_grad_norm=settings.max_grad_norm,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not on_gpu,
        ddp_backend=("nccl" if on_gpu else "gloo") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None,
        ddp_find_unused_parameters=False,
        seed=settings.seed,
        data_seed=settings.seed,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        logging_steps=1 if not on_gpu else 10,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=eval_every if evaluates else None,
        save_strategy="steps" if save else "no",
        save_steps=eval_every,
        # The newest, the one before (should the newest be cut off by a kill), and the best.
        save_total_limit=3,
        metric_for_best_model="eval_rank" if evaluates else None,
        greater_is_better=False if evaluates else None,
        disable_tqdm=True,
        report_to=(settings.report_to or "none") if save else "none",
        run_name=Path(settings.output).name,
        average_tokens_across_devices=True,
        restore_callback_states_from_checkpoint=True,
    )
    if arguments.n_gpu > 1:
        # One process drives one GPU. Without this, Trainer splits each batch over all GPUs that it sees (DataParallel),
        # which multiplies batch and loss; several GPUs are torchrun's.
        arguments._n_gpu = 1
    return arguments
