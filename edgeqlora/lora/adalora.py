"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) by PEFT: ranks found during training, written as a plain LoRA adapter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from edgeqlora.errors import UserError
from edgeqlora.lora.ranks import Ranks, peft_patterns

PREFIX = "adalora:"
MORE = 1.5
"""Ranks at the start, in multiples of those at the end."""
SCALING = 2.0
"""alpha / rank, as elsewhere."""


def asked_rank(ranks: str) -> int | None:
    """R of `adalora:R`; None for anything else. Raises UserError for an R that cannot be."""
    if not ranks.startswith(PREFIX):
        return None
    number = ranks.removeprefix(PREFIX)
    if not re.fullmatch("[0-9]{1,3}", number) or not 2 <= int(number) <= 256:
        raise UserError(f"ranks={ranks!r}: the mean rank after 'adalora:' must be a whole number from 2 to 256")
    return int(number)


def adalora_config(rank: int, linears: dict[str, tuple[int, int]], n_steps: int, dropout: float) -> Any:
    """PEFT's configuration: a tenth of the steps at all ranks, then fewer, and the last three tenths at those that are left.

    Raises UserError for a run that is too short for that.
    """
    from peft import AdaLoraConfig

    if n_steps < 20:
        raise UserError(f"ranks='adalora:{rank}' in {n_steps} steps: allowed is 20 or more, so that ranks can be found")
    start = min(round(MORE * rank), *(min(sides) for sides in linears.values()))
    if start <= rank:
        raise UserError(f"ranks='adalora:{rank}': allowed is at most {start - 1}, since it begins with more")
    return AdaLoraConfig(
        target_r=rank,
        init_r=start,
        tinit=n_steps // 10,
        tfinal=n_steps - final_step(n_steps),
        deltaT=max(1, n_steps // 100),
        total_step=n_steps,
        lora_alpha=round(SCALING * start),
        lora_dropout=dropout,
        target_modules=sorted(linears),
    )


def final_step(n_steps: int) -> int:
    """Step from which the ranks stay: only then is the budget met."""
    return n_steps - 3 * n_steps // 10


class Allocation(TrainerCallback):
    """Has PEFT take ranks away after each optimiser step, while the gradients are still there."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        while hasattr(model, "module"):
            model = model.module
        model.base_model.update_and_allocate(state.global_step + 1)


def orthogonality(model: Any) -> Any:
    """Its penalty, a scalar tensor: mean over A and B of |P P^T - 1|, times the weight of its configuration."""
    import torch

    config = model.peft_config["default"]
    parts = []
    for name, p in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            square = p @ p.T if ".lora_A." in name else p.T @ p
            parts.append((square - torch.eye(len(square), device=p.device)).norm())
    return config.orth_reg_weight * torch.stack(parts).mean()


def to_plain_lora(folder: Path) -> dict[str, Any]:
    """Replace the AdaLoRA adapter in `folder` by the same one as plain LoRA; returns its content of ranks.json.

    Of W + s B diag(E) A the directions with E = 0 go, and E goes into A. Linears without any left get no adapter.
    """
    from peft import LoraConfig, PeftConfig
    from safetensors.torch import load_file, save_file

    config = PeftConfig.from_pretrained(str(folder))
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    scaling = config.lora_alpha / config.init_r
    plain, rank = {}, {}
    for key in [key for key in weights if key.endswith(".lora_E")]:
        stem = key.removesuffix(".lora_E")
        values = weights[key].flatten()
        kept = values.nonzero().flatten()
        if not len(kept):
            continue
        rank[stem.removeprefix("base_model.model.")] = len(kept)
        plain[f"{stem}.lora_A.weight"] = (weights[f"{stem}.lora_A"] * weights[key])[kept].contiguous()
        plain[f"{stem}.lora_B.weight"] = weights[f"{stem}.lora_B"][:, kept].contiguous()
    if not plain:
        raise UserError(f"{folder}: AdaLoRA kept no direction: train for more steps, or with a higher --learning-rate")
    alpha = {name: scaling * value for name, value in rank.items()}
    written = LoraConfig(
        base_model_name_or_path=config.base_model_name_or_path,
        lora_dropout=config.lora_dropout,
        **peft_patterns(Ranks(rank, alpha, "adalora")),
    )
    written.inference_mode = True
    save_file(plain, path, metadata={"format": "pt"})
    written.save_pretrained(str(folder))
    return {"rank_pattern": rank, "alpha_pattern": alpha, "source": f"{PREFIX}{config.target_r}", "init": "random"}
