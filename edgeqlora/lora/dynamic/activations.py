"""Entropy of what each linear hears, on the same clips before, during and after training."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from edgeqlora.lora.entropy import keep_until
from edgeqlora.lora.scores import input_entropy
from edgeqlora.lora.statistics import ROWS, Moments
from edgeqlora.models.clips import hear
from edgeqlora.models.family import Learner
from edgeqlora.models.quantised import plain_model

Clips = Callable[[], Iterable[dict[str, Any]]]


def input_entropies(
    learner: Learner, names: Iterable[str], clips: Iterable[dict[str, Any]], n_clips: int
) -> dict[str, float]:
    """Rényi-2 entropy in nats of the inputs of each linear, with the adapters as they are; padding counts nowhere.

    clips: as lora.statistics.collect takes them; clip i belongs to half i % 2.
    """
    model = plain_model(learner.model)
    modules = dict(model.named_modules())
    halves: dict[str, tuple[Moments, Moments]] = {}
    heard: dict[str, Any] = {}
    handles = [
        modules[name].register_forward_pre_hook(lambda module, args, name=name: heard.__setitem__(name, args[0]))
        for name in names
    ]
    was_training = model.training
    model.eval()
    try:
        for number, clip in enumerate(clips):
            _, labels = hear(learner, clip)
            added: dict[int, str] = {}
            for name, x in heard.items():
                if (first := added.setdefault(id(x), name)) != name:  # several hear one tensor
                    halves[name] = halves[first]
                    continue
                rows = x.reshape(-1, x.shape[-1])[learner.counted(name, clip["n_valid"], labels)].float()
                pair = halves.setdefault(name, (Moments(rows.shape[1]), Moments(rows.shape[1])))
                pair[number % 2].add(rows, max(1, ROWS // max(1, n_clips // 2)))
            heard.clear()
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return {name: input_entropy(*pair) for name, pair in halves.items()}


class ActivationLog(TrainerCallback):
    """Writes these entropies before the first step, at each move of ranks and at the end, a JSON line for each linear."""

    def __init__(
        self, learner: Learner, groups: dict[str, str], clips: Clips, n_clips: int, path: Path, first_step: int
    ):
        """groups: of each linear by its name. first_step: of a run that goes on; 0 at the start."""
        self._learner, self._groups, self._clips, self._n_clips, self._path = learner, groups, clips, n_clips, path
        self._last = -1
        keep_until(path, first_step)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.write(0)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.write(state.global_step)

    def write(self, step: int) -> None:
        if step == self._last:
            return
        self._last = step
        found = input_entropies(self._learner, self._groups, self._clips(), self._n_clips)
        with self._path.open("a", encoding="utf-8") as file:
            for name, entropy in found.items():
                row = {"step": step, "group": self._groups[name], "name": name, "entropy": round(entropy, 6)}
                file.write(json.dumps({**row, "effective_rank": round(math.exp(entropy), 4)}) + "\n")
