"""The folder at the end of a run: weights of the best checkpoint, what they were made of, and pictures."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from edgeqlora.card import Card, write_card
from edgeqlora.settings import TrainSettings, write_settings
from edgeqlora.training import checkpoint
from edgeqlora.training.arguments import computed_with
from edgeqlora.training.dev_score import DevScore, no_dev
from edgeqlora.training.general import Canary
from edgeqlora.training.partial_run import CONFIG, inputs_of, partial_folder
from edgeqlora.training.training_data import Prepared
from edgeqlora_jetson.files import atomic_folder, read_json, sha256_file, write_json

ADAPTER_LOG = "adapters.jsonl"
"""Entropy, effective rank and size of every adapter at each evaluation and at the end."""

ACTIVATION_LOG = "activations.jsonl"
"""Entropy of what every linear hears, before training, at each move of ranks and at the end."""


def write_output(
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
    from edgeqlora.lora.adapters import base_dtype, fold_scale
    from edgeqlora.lora.temporal.gates import GATE_FILES, gates_field

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
                *GATE_FILES,
            ) or (
                settings.method == "full" and file.name.startswith("model") and file.suffix in (".safetensors", ".json")
            ):
                shutil.copyfile(file, out / file.name)
        learner.processor.save(out)
        if settings.method != "full" and settings.ranks.startswith("adalora:"):
            from edgeqlora.lora.adalora import to_plain_lora

            ranks = to_plain_lora(out)
        if settings.moves_ranks():
            from edgeqlora.lora.dynamic.reallocate import ranks_in

            alpha, begun, found = ranks["alpha_pattern"], ranks["rank_pattern"], ranks_in(out)
            scaled = {name: alpha[name] / begun[name] * rank for name, rank in found.items()}
            ranks = {**ranks, "rank_pattern": found, "alpha_pattern": scaled}
        if settings.fold_scale:
            fold_scale(out)
        if settings.method == "full":
            config = read_json(out / "config.json", "config.json")
            if "use_cache" in config:  # Trainer switches it off while it trains
                write_json(out / "config.json", {**config, "use_cache": True})
            if learner.model.can_generate():
                learner.model.generation_config.save_pretrained(out)
        for name in ("log.jsonl", ADAPTER_LOG, ACTIVATION_LOG):
            if (partial / name).exists():
                shutil.copyfile(partial / name, out / name)
        _draw(out)
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
            skip_silence=settings.skip_silence,
            silence=data.silence,
            data={
                "n_train": len(data.rows),
                "train_audio_s": round(sum(data.durations_s), 2),
                "n_dev": len(data.dev_rows),
                "n_skipped_long": data.n_skipped,
                "n_cut_texts": data.n_cut,
                "n_empty_texts": data.n_empty,
                "n_other_script": data.n_other_script,
                "padding": data.padding,
            },
            steps=state.global_step,
            best_step=best_step,
            **(dev_score.card_fields(state.log_history, best_step) if dev_score else no_dev()),
            **({"dropped_layers": dropped} if dropped else {}),
            **gates_field(out),
            **({"canary": canary.card_field(state.log_history, best_step)} if canary else {}),
            **(
                {
                    "replay": {
                        "source": settings.replay,
                        "n_clips": len(data.replay.rows),
                        "windows_s": data.replay.windows_s,
                    }
                }
                if data.replay
                else {}
            ),
            figures=figures,
            weights={p.name: sha256_file(p) for p in sorted(out.glob("*.safetensors"))},
        )
    shutil.rmtree(partial, ignore_errors=True)
    return card


def _draw(folder: Path) -> None:
    """Pictures of the logs of adapters and of what layers hear, beside them."""
    from edgeqlora.lora.pictures import draw_activations, draw_adapters

    for name, draw in ((ADAPTER_LOG, draw_adapters), (ACTIVATION_LOG, draw_activations)):
        if (path := folder / name).exists():
            draw([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()], path)
