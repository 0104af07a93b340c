"""Settings of a training run: a frozen dataclass, whose fields are flags and may stand in a TOML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from edgeqlora.errors import UserError

NORMALISERS = ("basic-unicode", "none", "whisper-basic", "whisper-english")
"""Text normalisers for WER and CER: the first two are the board's own, the others OpenAI's, through transformers."""


def _setting(
    default: Any, low: float | None = None, high: float | None = None, allowed: tuple[str, ...] = (), flags: Any = ()
) -> Any:
    """A field with its range or its choices, and more names for its flag."""
    return field(default=default, metadata={"low": low, "high": high, "allowed": allowed, "flags": flags})


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a training run. Each field may stand in the TOML file and is a flag of `train`."""

    base_model: str = _setting("", flags=("-m",))
    """Folder of a transformers model (Whisper, or Wav2Vec2 with a CTC head), or a name on the Hugging Face hub."""
    train: str = ""
    """Training data: manifest, LibriSpeech or Common Voice folder, NeMo manifest, datasets folder, hf:owner/name."""
    dev: str = ""
    """Data for choosing the best checkpoint; empty: the last checkpoint is kept."""
    choose_by: str = _setting("auto", allowed=("auto", "wer", "cer", "loss"))
    """What the best checkpoint is chosen by: wer, cer, loss, or auto: wer, and cer for texts without spaces."""
    split: str = ""
    """Splits of the training data, with commas between. Default, where it has several: those that begin with train."""
    dev_split: str = ""
    """Splits of the dev data, with commas between. Default, where it has several: those that begin with dev or valid."""
    output: str = _setting("", flags=("-o",))
    """Folder to write: a PEFT adapter (qlora, lora, ia3, prefix) or a transformers folder (full)."""
    method: str = _setting("qlora", allowed=("qlora", "lora", "ia3", "prefix", "full"))
    """qlora (quantised base, LoRA on top), lora (16/32-bit base), ia3, prefix, or full (all weights)."""
    bits: int | None = None
    """Bits of the base's linears: 4 (NF4) or 8 (int8), of qlora, ia3 and prefix. Default: 4 with qlora, else not quantised."""
    adapt: str = "all"
    """Linears that get adapters: all, attention, feed-forward, groups such as encoder or encoder:attention, commas between."""
    prefix_tokens: int = _setting(16, 1, 256)
    """Keys and values that method prefix puts in front of the text."""
    drop_layers: str = ""
    """Layers to take out before tuning, such as encoder:1,2 (the first is 0); auto:N: N of the encoder, chosen by what they do."""
    ranks: str = "uniform:8"
    """uniform:R, the path of a ranks.json, or such as move in training: adalora:R (PEFT's), flex:R (after FlexLoRA)."""
    reallocate: bool = False
    """At 20, 40 and 60 % of the steps move ranks from directions that matter least to adapters that use all of theirs."""
    lora_alpha: float | None = _setting(None, 1e-3, 4096)
    """LoRA alpha; scaling is alpha / rank. Default: twice the rank (scaling 2)."""
    fold_scale: bool = False
    """Write the adapter with alpha / rank taken into its weights (alpha = rank), for servers that ignore alpha_pattern."""
    lora_dropout: float = _setting(0.0, 0.0, 0.9)
    """Dropout on the input of the LoRA branch."""
    entropy_weight: float = _setting(0.0, -1.0, 1.0)
    """Weight of the entropy of what adapters add: above 0 pushes it down (fewer directions), below 0 up; 0: off."""
    temporal_gate: str = _setting("off", allowed=("off", "layer", "rank"))
    """Gates that weigh what adapters add at each moment, by what is heard there: off, one a layer, or one for each rank."""
    learning_rate: float | None = _setting(None, 1e-8, 1.0, flags=("--lr",))
    """Peak learning rate. Default: 1e-3 with LoRA, 3e-2 with ia3 and prefix, 1e-4 with full fine-tuning."""
    steps: int | None = _setting(None, 1, 10**8)
    """Optimiser steps; give this or epochs."""
    epochs: float | None = _setting(None, 0.01, 10_000)
    """Passes over the training data; give this or steps. Default: 3."""
    batch_size: int = _setting(16, 1, 65_536)
    """Clips per optimiser step over all processes and accumulation steps."""
    gradient_accumulation: int = _setting(1, 1, 4096)
    """Forward/backward passes per optimiser step and process."""
    optimizer: str = _setting("auto", allowed=("auto", "adamw", "paged-adamw-8bit"))
    """adamw, paged-adamw-8bit, or auto: paged on a GPU, adamw elsewhere (there is nothing to page on a CPU)."""
    warmup_ratio: float = _setting(0.05, 0.0, 0.9)
    """Share of the steps with linearly rising learning rate, before the cosine decay to zero."""
    weight_decay: float = _setting(0.0, 0.0, 1.0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = _setting(1.0, 1e-6, 1e6)
    """Gradients are clipped to this global L2 norm."""
    precision: str = _setting("auto", allowed=("auto", "fp32", "bf16", "fp16"))
    """fp32, bf16, fp16 (mixed precision), or auto: bf16 or fp16 by what the GPU offers, fp32 on a CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    low_memory: bool = True
    """On a CPU, give freed tensors back to the system at once: a fifth less peak memory, a third less speed."""
    window_s: str = "auto"
    """Audio seconds that the encoder sees: auto (what the data needs), a number, or several (2,5,10)."""
    window_draw: str = _setting("smallest", allowed=("smallest", "any"))
    """Where there are several windows: a clip gets the smallest that holds it, or any, so that one model serves them all."""
    skip_silence: bool = False
    """Cut silence around and inside speech away, of all clips, before windows are chosen; the library silero-vad finds it."""
    long_clips: str = _setting("error", allowed=("error", "skip"))
    """Clips longer than the window: error, or skip (counted and named)."""
    other_script: str = _setting("auto", allowed=("auto", "keep", "skip", "error"))
    """Texts in another script than the language's: keep, skip, error, or auto: keep them, but stop where they are most."""
    max_label_tokens: int | None = _setting(None, 1, 10**5)
    """Longer labels are cut, and counted aloud. Default: the model's own limit."""
    eval_every: int | None = _setting(None, 1, 10**8)
    """Steps between dev evaluations (and checkpoints). Default: a tenth of the run, at least 10."""
    eval_samples: int = _setting(200, 0, 10**8)
    """Clips of dev scored at each evaluation (drawn evenly over the set); 0: all."""
    patience: int = _setting(0, 0, 10**6)
    """Stop after this many evaluations without a better figure on dev (see choose_by); 0: never stop early."""
    entropy_clips: int = _setting(0, 0, 10_000)
    """Training clips on which the entropy of what each linear hears is measured before and after; 0: none."""
    seed: int = _setting(42, 0, 2**32 - 1)
    """Seeds data order, augmentation, initialisation and dropout."""
    language: str | None = None
    """Language code for multilingual models, e.g. de. English-only models take none."""
    task: str = _setting("transcribe", allowed=("transcribe", "translate"))
    """transcribe or translate (multilingual models)."""
    normaliser: str = "auto"
    """Text normaliser for WER: basic-unicode, none, whisper-basic, whisper-english, or auto (basic-unicode)."""
    spec_augment: bool = False
    """SpecAugment on the log-mel: time warp, two frequency masks, two time masks."""
    speed_perturb: list[float] = field(default_factory=list)
    """Speed factors to draw from, e.g. 0.9,1.0,1.1 (a list in TOML); empty: off."""
    noise: str = ""
    """Folder or manifest of noise recordings to mix in; empty: off."""
    noise_snr_db: list[float] = field(default_factory=lambda: [5.0, 20.0])
    """Lowest and highest signal-to-noise ratio to draw from, in dB (a list in TOML)."""
    noise_probability: float = _setting(0.5, 0.0, 1.0)
    """Share of the clips that get noise."""
    room: str = ""
    """Folder or manifest of room impulse responses to convolve clips with; empty: off."""
    room_probability: float = _setting(0.5, 0.0, 1.0)
    """Share of the clips that are put into a room."""
    canary: str = ""
    """General speech, scored before training and with every evaluation: what the model forgets."""
    max_canary_increase: float | None = _setting(None, 0.0, 1000.0)
    """Points by which the canary's error rate may rise in the checkpoint that is kept. Default: any."""
    replay: str = ""
    """General speech that stands in every step against forgetting; clips without text are transcribed by the base model."""
    replay_share: float = _setting(0.5, 0.01, 0.99)
    """Share of a step's clips that are replay, such as 0.5 or 0.25."""
    cache: str = "auto"
    """Folder for cached features; auto: the user's cache folder; none: off."""
    cache_gib: float = _setting(20.0, 0.01, 1e6)
    """Most GiB of cached features; beyond it those not used for longest go first."""
    workers: int = _setting(0, 0, 256)
    """Data loader processes."""
    limit: int | None = _setting(None, 1, 10**9)
    """Use only this many training clips (for trying things)."""
    report_to: list[str] = field(default_factory=list, metadata={"allowed": ("tensorboard", "mlflow", "wandb")})
    """tensorboard, mlflow, wandb: passed to the trainer."""

    def chosen_precision(self) -> str:
        """fp32, bf16 or fp16; `auto` takes what this machine computes best. UserError for fp16 without a GPU."""
        import torch

        if self.precision != "auto":
            if self.precision == "fp16" and not torch.cuda.is_available():
                raise UserError("precision='fp16' needs a CUDA GPU: on a CPU use fp32 or bf16")
            return self.precision
        if not torch.cuda.is_available():
            return "fp32"
        # A Turing has bf16 only in emulation, slower than fp32.
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"

    def moves_ranks(self) -> bool:
        """Whether ranks of plain LoRA adapters move in training."""
        return self.method in ("qlora", "lora") and (self.reallocate or self.ranks.startswith("flex:"))

    def resolved_learning_rate(self) -> float:
        """The given rate, or the method's default."""
        return self.learning_rate or {"full": 1e-4, "ia3": 3e-2, "prefix": 3e-2}.get(self.method, 1e-3)

    def base_bits(self) -> int | None:
        """Bits in which training holds the base's linears; None: not quantised."""
        return self.bits or (4 if self.method == "qlora" else None)

    def scored_by(self) -> str:
        """Name of the normaliser of dev texts: the board's own, unless another one is asked for."""
        return NORMALISERS[0] if self.normaliser == "auto" else self.normaliser


FIELDS = {f.name: f for f in dataclasses.fields(TrainSettings)}
"""Fields by name."""

PANELS: dict[str, tuple[str, ...]] = {
    "Model and data": ("base_model", "train", "dev", "output", "language", "task", "limit"),
    "Adapter": (
        "method",
        "bits",
        "adapt",
        "drop_layers",
        "ranks",
        "reallocate",
        "lora_alpha",
        "fold_scale",
        "lora_dropout",
        "entropy_weight",
        "temporal_gate",
        "prefix_tokens",
    ),
    "Length and optimiser": (
        "steps",
        "epochs",
        "batch_size",
        "gradient_accumulation",
        "learning_rate",
        "optimizer",
        "warmup_ratio",
        "weight_decay",
        "max_grad_norm",
        "seed",
    ),
    "Windows and labels": ("window_s", "window_draw", "skip_silence", "long_clips", "max_label_tokens"),
    "Forgetting": ("canary", "max_canary_increase", "replay", "replay_share"),
    "Evaluation": ("eval_every", "eval_samples", "patience", "entropy_clips", "normaliser", "report_to"),
    "Memory and speed": ("precision", "gradient_checkpointing", "low_memory", "cache", "cache_gib", "workers"),
    "Augmentation": (
        "spec_augment",
        "speed_perturb",
        "noise",
        "noise_snr_db",
        "noise_probability",
        "room",
        "room_probability",
    ),
}
"""Fields by the panel of `train --help` that shows them."""
