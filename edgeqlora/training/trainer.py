"""transformers' Trainer with our batches, windows and checkpoints; accelerate does devices, processes and precision."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from edgeqlora.data.batching import IGNORE, BucketSampler, MixedSampler
from edgeqlora.lora.loading import resume_weights
from edgeqlora.lora.temporal.gates import save_gates
from edgeqlora.models.family import Learner
from edgeqlora.training import checkpoint
from edgeqlora.training.gate_updates import give_own_groups, hold_gates_back
from edgeqlora_export.gates import RECORD
from edgeqlora_jetson.files import sha256_file, write_json

NOT_YET = 1e7
"""Added to the rank of a checkpoint that may not be the best, above all but a diverged one's."""

Evaluate = Callable[[], dict[str, float]]


class SpeechTrainer(Trainer):
    """Trainer for models that see a window of the batch's own length."""

    def __init__(
        self,
        *,
        learner: Learner,
        sampler: BucketSampler | MixedSampler,
        evaluate_now: Evaluate | None,
        watch: Callable[[int, dict[str, float]], None] | None = None,
        penalty: Callable[[], torch.Tensor] | None = None,
        not_before: int = 0,
        before_resume: Callable[[Path], None] | None = None,
        **kwargs: Any,
    ):
        """sampler: the whole run's samples in order; evaluate_now: dev figures of the model as it is, named eval_*;
        watch: told the step and these figures; penalty: of the adapters, added to the loss of each step;
        not_before: step from which a checkpoint may be the best; before_resume: called with a checkpoint's folder before
        its adapters are loaded."""
        super().__init__(model=learner.model, compute_loss_func=self._token_mean_loss, **kwargs)
        self._learner, self._sampler, self._evaluate_now, self._watch = learner, sampler, evaluate_now, watch
        self._penalty, self._not_before, self._inputs = penalty, not_before, dict[str, Any]()
        self._before_resume = before_resume
        # Our loss is already divided by the tokens of the whole step.
        self.loss_is_scaled_for_ga = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._sampler

    def create_optimizer(self, model: Any = None) -> Any:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            give_own_groups(optimizer, self.model if model is None else model, self.args.learning_rate)
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        hold_gates_back(scheduler, self.args.get_warmup_steps(num_training_steps))
        return scheduler

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self._inputs = inputs
        with self._learner.window(inputs):
            loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self._penalty is not None and isinstance(loss, torch.Tensor):
            loss = loss + self._penalty() / self.args.gradient_accumulation_steps
        return loss

    def _token_mean_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The learner's summed loss of this micro-batch / labels of the whole optimiser step.

        The divisor counts all processes and accumulation steps, so that the gradient of a global batch is the same
        however it is divided.
        """
        total: torch.Tensor = self._learner.loss(outputs, self._inputs, labels)
        if isinstance(self._sampler, MixedSampler):
            # Parts count by their clips: long general sentences would drown the task's few tokens otherwise.
            parts = self.args.gradient_accumulation_steps * self.args.world_size
            return total / (labels != IGNORE).sum().clamp(min=1) / parts
        return total / (num_items_in_batch if num_items_in_batch is not None else (labels != IGNORE).sum())

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        assert self._evaluate_now is not None, "evaluation without dev data"
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        try:
            metrics = self._evaluate_now()
        finally:
            model.train(was_training)
        if self.state.global_step < self._not_before:
            metrics["eval_rank"] += NOT_YET
        self.log(dict(metrics))
        if self._watch is not None:
            self._watch(self.state.global_step, metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        return metrics

    # Checkpoints: transformers would pickle optimiser, random state and arguments; ours are safetensors and JSON.

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if not self.args.should_save:
            return  # Trainer calls this on every process
        model = self.accelerator.unwrap_model(self.model)
        model.save_pretrained(output_dir, state_dict=state_dict)
        save_gates(model, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        plain = self.accelerator.unwrap_model(self.model if model is None else model)
        if self._before_resume is not None:
            self._before_resume(Path(resume_from_checkpoint))
        if hasattr(plain, "peft_config") and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            resume_weights(plain, Path(resume_from_checkpoint))
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save and folder.exists():
            shutil.rmtree(folder)  # left over from a run that was killed while writing it
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            weights = {p.name: sha256_file(p) for p in sorted([*folder.glob("*.safetensors"), *folder.glob(RECORD)])}
            write_json(folder / checkpoint.COMPLETE, {"step": self.state.global_step, "sha256": weights})

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._save_optimizer_and_scheduler(output_dir)  # sharded states have their own formats
        elif self.args.should_save:
            checkpoint.save_tree(self.optimizer.state_dict(), Path(output_dir, "optimizer"))
            checkpoint.save_tree(self.lr_scheduler.state_dict(), Path(output_dir, "scheduler"))

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if folder is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(folder)
            return
        self.optimizer.load_state_dict(checkpoint.load_tree(Path(folder, "optimizer")))
        self.lr_scheduler.load_state_dict(checkpoint.load_tree(Path(folder, "scheduler")))

    def _save_scaler(self, output_dir: str) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and self.args.should_save:
            checkpoint.save_tree(scaler.state_dict(), Path(output_dir, "scaler"))

    def _load_scaler(self, folder: str | None) -> None:
        scaler = getattr(self.accelerator, "scaler", None)
        if scaler is not None and folder is not None and Path(folder, "scaler.json").exists():
            scaler.load_state_dict(checkpoint.load_tree(Path(folder, "scaler")))

    def _save_rng_state(self, output_dir: str) -> None:
        os.makedirs(output_dir, exist_ok=True)
        checkpoint.save_tree(checkpoint.random_state(), Path(output_dir, f"random-{self.args.process_index}"))

    def _load_rng_state(self, folder: str | None) -> None:
        if folder is not None and Path(folder, f"random-{self.args.process_index}.json").exists():
            checkpoint.set_random_state(checkpoint.load_tree(Path(folder, f"random-{self.args.process_index}")))


def stopped_early(checkpoint: Path, patience: int) -> TrainerState | None:
    """State of a run that had stopped early at this checkpoint (Trainer would go on for one step), None of any other."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    callback = state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
    if not callback or callback["attributes"]["early_stopping_patience_counter"] < patience:
        return None
    return state


class EveryAdapterLearns(TrainerCallback):
    """Stops a run in which some adapter gets no gradient (a silent failure of checkpointing and of wrong names)."""

    def __init__(self) -> None:
        self._checked = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if self._checked:
            return
        self._checked = True
        names = [name for name, _ in model.named_parameters()]
        # AdaLoRA starts with E at zero.
        parts = ("lora_E", "lora_B", "ia3_l", "prompt_encoder")
        part = next(part for part in parts if any(part in name for name in names))
        silent = [name for name, p in model.named_parameters() if part in name and (p.grad is None or not p.grad.any())]
        # lora_A has a zero gradient in the first step, because B starts at zero.
        if silent:
            raise RuntimeError(f"{len(silent)} adapters get no gradient, the first is {silent[0]}")
