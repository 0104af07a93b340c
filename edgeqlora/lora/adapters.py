"""The model to train: base weights, adapters at their ranks, and what it weighs."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from edgeqlora.card import measured
from edgeqlora.errors import UserError
from edgeqlora.lora.ranks import Ranks, peft_patterns, resolve_ranks
from edgeqlora.models.family import Learner, load_learner
from edgeqlora.models.placement import ALL, place
from edgeqlora.models.quantised import plain_model, same_in_every_mode
from edgeqlora.settings import TrainSettings


def base_dtype(settings: TrainSettings) -> str:
    """The dtype in which training holds what is not quantised, and from which it quantises: that of the card."""
    import torch

    precision = settings.chosen_precision()
    if settings.method == "full" or not torch.cuda.is_available():
        return "float32"
    return {"bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32")


def load_base(settings: TrainSettings) -> Learner:
    """The base model as the settings want it held: 4, 8 or 16/32-bit, on the GPU of this process or the CPU."""
    import torch

    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    bits = settings.base_bits()
    return load_learner(settings.base_model, bits is not None, base_dtype(settings), device, bits or 4)


def group_of(learner: Learner, name: str) -> str | None:
    """Group of the innermost block around a module; None of what is in no block."""
    around = [
        (len(block), group)
        for group, names in learner.blocks().items()
        for block in names
        if name.startswith(f"{block}.")
    ]
    return max(around)[1] if around else None


def adapted_linears(learner: Learner, adapt: str = ALL) -> dict[str, list[str]]:
    """Full names of the linears that get adapters, by group: each belongs to the innermost block around it.

    adapt: which of those in blocks (see models/placement.py). UserError for a part that this model does not have.
    """
    import torch

    groups: dict[str, list[str]] = {group: [] for group in learner.blocks()}
    for name, module in plain_model(learner.model).named_modules():
        if isinstance(module, torch.nn.Linear) and (group := group_of(learner, name)):
            groups[group].append(name)
    return place(groups, learner.roles, adapt)


def with_adapters(settings: TrainSettings, learner: Learner, n_steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the learner its adapters: returns the ranks as a dict, and the size figures.

    The dict is empty where there are no ranks, and for AdaLoRA, whose ranks are found in the n_steps of the run.
    """
    from transformers import set_seed

    set_seed(settings.seed)
    model = learner.model
    n_total = model.num_parameters()  # of 4-bit weights, which are packed two to a byte, what they were
    stored = _stored_bytes(model)
    trainable_dict: dict[str, Any] = {}
    if settings.method == "full":
        model.requires_grad_(True)
        learner.freeze_fixed()
    else:
        from peft import LoraConfig, get_peft_model

        from edgeqlora.lora.adalora import adalora_config, asked_rank
        from edgeqlora.lora.initialise import put_start
        from edgeqlora.lora.methods.ia3 import ia3_config
        from edgeqlora.lora.methods.prefix import with_prefix

        modules = dict(model.named_modules())
        linears = {
            name: (modules[name].out_features, modules[name].in_features)
            for names in adapted_linears(learner, settings.adapt).values()
            for name in names
        }
        # task_type stays unset: with one, peft passes input_ids, which speech models do not take (peft#1988).
        if settings.method == "prefix":
            learner.model = model = with_prefix(learner, settings.prefix_tokens)
        elif settings.method == "ia3":
            learner.model = model = get_peft_model(model, ia3_config(linears, learner.roles))
        elif (mean_rank := asked_rank(settings.ranks)) is not None:
            config = adalora_config(mean_rank, linears, n_steps, settings.lora_dropout)
            learner.model = model = get_peft_model(model, config)
        else:
            ranks = resolve_ranks(settings.ranks, linears, settings.lora_alpha)
            if ranks.init == "qera" and settings.base_bits() != 4:
                held = f"bits={bits}" if (bits := settings.bits) else f"method={settings.method!r}"
                raise UserError(
                    f"{settings.ranks} starts adapters at what NF4 takes from the base (init qera), and {held} has no NF4: "
                    "allowed is method='qlora' with 4 bits, or other ranks"
                )
            config = LoraConfig(lora_dropout=settings.lora_dropout, **peft_patterns(ranks))
            learner.model = model = get_peft_model(model, config)
            _verify_ranks(model, ranks.rank)
            if ranks.start is not None:
                put_start(model, ranks.start, ranks.rank)
            trainable_dict = {
                "rank_pattern": ranks.rank,
                "alpha_pattern": ranks.alpha,
                "source": ranks.source,
                "init": ranks.init,
            }
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # adapters train in fp32 whatever the base is stored in
        if settings.temporal_gate != "off":
            from edgeqlora.lora.temporal.gates import add_gates

            add_gates(learner, settings.temporal_gate)
        if settings.base_bits():
            same_in_every_mode(model)
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if settings.gradient_checkpointing:
        plain_model(model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    full_bytes = 4 * n_total
    added = 4 * n_trainable if settings.method != "full" else 0
    figures = {
        "parameters": measured(n_total, "parameters"),
        "trainable_parameters": measured(n_trainable, "parameters", share=round(n_trainable / n_total, 6)),
        "compression_trainable": measured(
            round(n_total / n_trainable, 2), "x", definition="all parameters / trainable parameters"
        ),
        "compression_size": measured(
            round(full_bytes / (stored + added), 3),
            "x",
            definition="fp32 model bytes / bytes held in training (base as stored + adapter in fp32)",
            fp32_mib=round(full_bytes / 2**20, 2),
            held_mib=round((stored + added) / 2**20, 2),
        ),
    }
    return trainable_dict, figures


def fold_scale(folder: Path) -> None:
    """Rewrite the LoRA adapter in `folder` with alpha / rank taken into B and alpha = rank: it adds the same."""
    from peft import PeftConfig
    from safetensors.torch import load_file, save_file

    path, config = folder / "adapter_model.safetensors", PeftConfig.from_pretrained(str(folder))
    weights = load_file(path)
    rank, stem = {}, "base_model.model."
    for key in [key for key in weights if key.endswith(".lora_B.weight")]:
        name = key.removeprefix(stem).removesuffix(".lora_B.weight")
        rank[name] = weights[key].shape[1]
        alphas = [value for pattern, value in config.alpha_pattern.items() if re.fullmatch(pattern, name)]
        weights[key] *= (alphas[0] if alphas else config.lora_alpha) / rank[name]
    for key, value in peft_patterns(Ranks(rank, {name: float(value) for name, value in rank.items()}, "")).items():
        setattr(config, key, value)
    save_file(weights, path, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def _verify_ranks(model: Any, rank: dict[str, int]) -> None:
    modules = dict(model.get_base_model().named_modules())
    for name, value in rank.items():
        got = modules[name].r.get("default") if hasattr(modules[name], "r") else None
        if got != value:
            raise RuntimeError(f"PEFT gave {name} rank {got}, wanted {value}")


def _stored_bytes(model: Any) -> int:
    """Bytes of the base as it is held: packed weights with their block scales, everything else in its dtype."""
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        if (scales := getattr(parameter, "SCB", None)) is not None:
            total += scales.numel() * scales.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.numel() * state.absmax.element_size()
            if state.nested:
                total += state.state2.absmax.numel() * state.state2.absmax.element_size()
    return total
