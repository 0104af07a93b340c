"""The model to train: base weights, adapters at their ranks, and what it weighs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from edgeqlora.card import measured
from edgeqlora.settings import TrainSettings
from edgeqlora.training.arguments import chosen_precision


def load_base(settings: TrainSettings) -> tuple[Any, dict[str, tuple[int, int]]]:
    import torch

    from edgeqlora.models.whisper import adapted_linears, load_model

    device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    precision = chosen_precision(settings)
    base_dtype = "float32"
    if settings.method != "full" and device != "cpu" and precision in ("bf16", "fp16"):
        base_dtype = {"bf16": "bfloat16", "fp16": "float16"}[precision]
    speech = load_model(settings.base_model, quantise=settings.method == "qlora", dtype=base_dtype, device=device)
    modules = dict(speech.model.named_modules())
    linears = {
        name: (modules[name].out_features, modules[name].in_features)
        for names in adapted_linears(speech.model).values()
        for name in names
    }
    return speech, linears


def with_adapters(
    settings: TrainSettings, model: Any, linears: dict[str, tuple[int, int]]
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The model to train, its ranks as a dict (empty for full fine-tuning), and the size figures."""
    from transformers import set_seed

    set_seed(settings.seed)
    n_total = sum(p.numel() for p in _original_sizes(model))
    stored = _stored_bytes(model)
    trainable_dict: dict[str, Any] = {}
    if settings.method == "full":
        model.requires_grad_(True)
        model.get_encoder().embed_positions.requires_grad_(False)  # fixed sinusoids
    else:
        from peft import LoraConfig, get_peft_model

        from edgeqlora.lora.ranks import peft_patterns, resolve_ranks
        from edgeqlora.models.whisper import keep_linear4bit_in_train_mode

        ranks = resolve_ranks(settings.ranks, linears, settings.lora_alpha)
        # task_type stays unset: with SEQ_2_SEQ_LM peft passes input_ids, which Whisper does not take (peft#1988).
        model = get_peft_model(model, LoraConfig(lora_dropout=settings.lora_dropout, **peft_patterns(ranks)))
        _verify_ranks(model, ranks.rank)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # adapters train in fp32 whatever the base is stored in
        if settings.method == "qlora":
            keep_linear4bit_in_train_mode(model)
        trainable_dict = {"rank_pattern": ranks.rank, "alpha_pattern": ranks.alpha, "source": ranks.source}
    n_trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if settings.gradient_checkpointing:
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
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
    return model, trainable_dict, figures


def _verify_ranks(model: Any, rank: dict[str, int]) -> None:
    modules = dict(model.get_base_model().named_modules())
    for name, value in rank.items():
        got = modules[name].r.get("default") if hasattr(modules[name], "r") else None
        if got != value:
            raise RuntimeError(f"PEFT gave {name} rank {got}, wanted {value}")


def _original_sizes(model: Any) -> Sequence[Any]:
    """Parameters with the shapes they had before 4-bit packing (two weights to a byte)."""
    import torch

    def unpacked(parameter: Any) -> Any:
        state = getattr(parameter, "quant_state", None)
        return torch.empty(state.shape, device="meta") if state is not None else parameter

    return [unpacked(parameter) for parameter in model.parameters()]


def _stored_bytes(model: Any) -> int:
    """Bytes of the base as it is held: packed weights with their block scales, everything else in its dtype."""
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            total += state.absmax.numel() * state.absmax.element_size()
            if state.nested:
                total += state.state2.absmax.numel() * state.state2.absmax.element_size()
    return total
