"""Pre-train the demo's model from scratch: `python -m edgeqlora.demo.pretrain --speech SPEECH --out MODEL`.

SPEECH is the `pretrain` folder of edgeqlora.demo.make_speech. The encoder sees windows of 3 s and less; the saved
model has Whisper's 1500 positions all the same, since they are sinusoids that are never trained.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeqlora.demo import phrases
from edgeqlora.demo.pretrain_batches import Utterance, bucketed_batches, load_batch, read_utterances
from edgeqlora.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperTokenizer


class Recipe(NamedTuple):
    """Everything that decides the result, beside the speech.

    window_s: longest window the encoder sees; each batch takes what its clips need.
    ctc_weight: share of an auxiliary CTC loss on the encoder. It shows the encoder an alignment
        directly instead of through the cross-attention alone; its head is dropped afterwards.
    """

    steps: int = 2500
    batch_size: int = 32
    lr: float = 2e-3
    warmup_steps: int = 200
    weight_decay: float = 0.02
    ctc_weight: float = 0.5
    label_smoothing: float = 0.1
    window_s: float = 3.0
    d_model: int = 128
    n_heads: int = 4
    encoder_layers: int = 3
    decoder_layers: int = 2
    seed: int = 7


def lr_share(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine to 2 %: the share of `recipe.lr` at `step`."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def build_model(recipe: Recipe, tokenizer: WhisperTokenizer) -> WhisperForConditionalGeneration:
    """An untrained model with its generation config."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    start, no_timestamps = tokenizer.prefix_tokens
    eos = int(tokenizer.eos_token_id)
    space = tokenizer.convert_tokens_to_ids("Ġ")
    special_ids = {
        "bos_token_id": eos,
        "eos_token_id": eos,
        "pad_token_id": eos,
        "decoder_start_token_id": start,
    }
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=80,
        d_model=recipe.d_model,
        encoder_layers=recipe.encoder_layers,
        decoder_layers=recipe.decoder_layers,
        encoder_attention_heads=recipe.n_heads,
        decoder_attention_heads=recipe.n_heads,
        encoder_ffn_dim=4 * recipe.d_model,
        decoder_ffn_dim=4 * recipe.d_model,
        max_source_positions=1500,
        max_target_positions=448,
        suppress_tokens=None,
        begin_suppress_tokens=None,
        **special_ids,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        **special_ids,
        max_length=448,
        is_multilingual=False,
        no_timestamps_token_id=no_timestamps,
        prev_sot_token_id=tokenizer.convert_tokens_to_ids("<|startofprev|>"),
        begin_suppress_tokens=[space, eos],
        suppress_tokens=[],
        return_timestamps=False,
    )
    return model


def encoder_decoder_loss(model: Any, ctc_head: Any, mel: torch.Tensor, labels: torch.Tensor, recipe: Recipe) -> Any:
    """(decoder loss, CTC loss) of a batch: mel (batch, n_mels, n_frames), labels (batch, n_tokens), -100 padded.

    The labels begin with <|notimestamps|> and end with <|endoftext|>; the CTC targets are what lies between.
    """
    import torch
    from torch.nn import functional

    out = model(input_features=mel, labels=labels)
    logits = out.logits.float().flatten(0, 1)
    decoder_loss = functional.cross_entropy(
        logits, labels.flatten(), ignore_index=-100, label_smoothing=recipe.label_smoothing
    )
    log_probs = ctc_head(out.encoder_last_hidden_state).float().log_softmax(-1).transpose(0, 1)
    n_text = (labels >= 0).sum(1) - 2
    n_audio = torch.full_like(n_text, log_probs.shape[0])
    blank = log_probs.shape[-1] - 1
    targets = labels[:, 1:].clamp(min=0)
    ctc_loss = functional.ctc_loss(log_probs, targets, n_audio, n_text, blank=blank, zero_infinity=True)
    return decoder_loss, ctc_loss


def train(
    model: WhisperForConditionalGeneration,
    tokenizer: WhisperTokenizer,
    utterances: list[Utterance],
    recipe: Recipe,
) -> float:
    """Train in place; returns the mean decoder loss of the last 50 steps."""
    import numpy as np
    import torch

    from edgeqlora_export.whisper.windowed import windowed

    ctc_head = torch.nn.Linear(recipe.d_model, len(tokenizer) + 1)
    parameters = [p for p in [*model.parameters(), *ctc_head.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_share(step, recipe))
    batches = bucketed_batches(utterances, recipe.batch_size, recipe.steps, recipe.seed)
    model.train()
    recent: list[float] = []
    started = time.monotonic()
    for step, chosen in enumerate(batches, 1):
        rng = np.random.default_rng([recipe.seed, step])
        mel, labels = load_batch(chosen, tokenizer, recipe.window_s, rng)
        with windowed(model, mel.shape[-1] / 100):
            decoder_loss, ctc_loss = encoder_decoder_loss(model, ctc_head, mel, labels, recipe)
            (decoder_loss + recipe.ctc_weight * ctc_loss).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        recent = [*recent[-49:], float(decoder_loss.detach())]
        if step % 100 == 0 or step == recipe.steps:
            print(
                f"step {step}/{recipe.steps} loss {sum(recent) / len(recent):.3f} ctc {float(ctc_loss.detach()):.3f} "
                f"lr {schedule.get_last_lr()[0]:.2e} {time.monotonic() - started:.0f} s",
                flush=True,
            )
    return sum(recent) / len(recent)


def measure_wer(model: Any, tokenizer: WhisperTokenizer, utterances: list[Utterance], window_s: float) -> float:
    """Corpus WER of greedy decoding; texts have lower case and no punctuation, so no normaliser is needed."""
    import torch

    from edgeqlora_export.whisper.windowed import windowed
    from edgeqlora_jetson.wer import corpus_error_rate

    model.eval()
    hypotheses: list[str] = []
    for start in range(0, len(utterances), 50):
        mel, _ = load_batch(utterances[start : start + 50], tokenizer, window_s)
        with torch.inference_mode(), windowed(model, window_s):
            tokens = model.generate(input_features=mel, max_new_tokens=40, num_beams=1, do_sample=False)
        hypotheses += [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    rate = corpus_error_rate(zip((utterance.text for utterance in utterances), hypotheses, strict=True))["rate"]
    return float(rate)


def save_model(model: Any, tokenizer: WhisperTokenizer, folder: Path, card: dict[str, Any]) -> None:
    """Write a plain transformers folder (fp16 safetensors, tokenizer, feature extractor) and card.json."""
    import torch
    from transformers import WhisperFeatureExtractor

    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def pretrain(speech: Path, out: Path, recipe: Recipe) -> dict[str, Any]:
    """Pre-train on `speech`/train.jsonl, score on heldout.jsonl, write `out`; returns the card."""
    import torch
    import transformers

    from edgeqlora.demo.tokenizer import build_tokenizer
    from edgeqlora_jetson.board.machine import measure_peak_rss_mib
    from edgeqlora_jetson.files import atomic_folder

    transformers.logging.set_verbosity_error()
    torch.manual_seed(recipe.seed)
    started = time.monotonic()
    utterances = read_utterances(speech / "train.jsonl")
    heldout = read_utterances(speech / "heldout.jsonl")
    tokenizer = build_tokenizer([*phrases.PHRASES * 3, *phrases.COMMON_WORDS])
    model = build_model(recipe, tokenizer)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{n_parameters / 1e6:.2f} M parameters, {len(utterances)} utterances, {recipe.steps} steps",
        flush=True,
    )
    loss = train(model, tokenizer, utterances, recipe)
    card = {
        "schema": "edgeqlora.pretrain/1",
        "recipe": recipe._asdict(),
        "n_utterances": len(utterances),
        "loss": round(loss, 4),
        "heldout_wer": round(measure_wer(model, tokenizer, heldout, recipe.window_s), 4),
        "wall_time_s": round(time.monotonic() - started, 1),
        "peak_rss_mib": round(measure_peak_rss_mib()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with atomic_folder(out) as folder:
        save_model(model, tokenizer, Path(folder), card)
    return card


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, pre-train, print the figures."""
    parser = argparse.ArgumentParser(prog="python -m edgeqlora.demo.pretrain", description=__doc__)
    parser.add_argument("--speech", type=Path, required=True, help="folder with train.jsonl and heldout.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--batch-size", type=int, default=Recipe().batch_size)
    parser.add_argument("--lr", type=float, default=Recipe().lr)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    options = parser.parse_args(arguments)
    recipe = Recipe(steps=options.steps, batch_size=options.batch_size, lr=options.lr, seed=options.seed)
    try:
        card = pretrain(options.speech, options.out, recipe)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"WER on clean voices it never heard: {100 * card['heldout_wer']:.1f} % ({card['wall_time_s']:.0f} s)")
    print(f"wrote {options.out}; next: edgeqlora train --base-model {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
