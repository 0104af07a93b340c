"""Pre-train the demo's CTC model from scratch: `python -m edgeqlora.demo.pretrain_ctc --out MODEL`.

It hears the shipped training clips of every fourth speaker, so that most voices are left to learn from afterwards.
The last checkpoint is kept: neither dev nor test decides anything here.
"""

from __future__ import annotations

import argparse
import json
import math
import string
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from edgeqlora.demo import speech_dir


class Recipe(NamedTuple):
    """Everything that decides the result, beside the speech."""

    steps: int = 1200
    batch_size: int = 16
    lr: float = 1.5e-3
    warmup_steps: int = 100
    weight_decay: float = 0.02
    channels: int = 64
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    seed: int = 7


def build_tokenizer() -> Any:
    """Characters: lower-case letters and the apostrophe, `|` between words, `<pad>` as the blank of CTC."""
    from transformers import Wav2Vec2CTCTokenizer

    tokens = ["<pad>", "<s>", "</s>", "<unk>", "|", "'", *string.ascii_lowercase]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder, "vocab.json")
        vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
        return Wav2Vec2CTCTokenizer(str(vocabulary))


def build_model(recipe: Recipe, vocab_size: int) -> Any:
    """An untrained Wav2Vec2ForCTC: one step every 20 ms as usual, but by four convolutions, which costs a fifth."""
    from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

    return Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=vocab_size,
            conv_dim=[recipe.channels] * 4,
            conv_kernel=[20, 8, 8, 4],
            conv_stride=[10, 4, 4, 2],
            conv_bias=True,
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            hidden_size=recipe.hidden,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            intermediate_size=4 * recipe.hidden,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=4,
            hidden_dropout=recipe.dropout,
            attention_dropout=recipe.dropout,
            feat_proj_dropout=0.0,
            layerdrop=0.0,
            apply_spec_augment=False,
            ctc_loss_reduction="mean",
            ctc_zero_infinity=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def train(model: Any, processor: Any, recipe: Recipe) -> float:
    """Train in place; returns the mean loss of the last 50 steps in nats per character."""
    import numpy as np
    import torch

    from edgeqlora.data.audio import load_audio
    from edgeqlora.data.manifest import load_rows
    from edgeqlora.demo.perturb import perturb
    from edgeqlora.models.wav2vec2.learner import Wav2Vec2Learner, collate

    rows = load_rows(speech_dir() / "train.jsonl")
    speakers = sorted({str(row.speaker) for row in rows})[::4]
    clips = [(load_audio(row), processor.text_ids(row.text)) for row in rows if row.speaker in speakers]
    learner = Wav2Vec2Learner(model, processor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)

    def share(step: int) -> float:
        if step < recipe.warmup_steps:
            return (step + 1) / recipe.warmup_steps
        done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    model.train()
    recent: list[float] = []
    started = time.monotonic()
    for step in range(1, recipe.steps + 1):
        rng = np.random.default_rng([recipe.seed, step])
        chosen = [clips[i] for i in rng.integers(len(clips), size=recipe.batch_size)]
        audio = [perturb(rng, clip) for clip, _ in chosen]
        window_s = math.ceil(max(a.size for a in audio) / 1600) / 10
        inputs = collate(
            [
                {"features": processor.features(a, window_s), "n_valid": a.size, "target_ids": ids}
                for a, (_, ids) in zip(audio, chosen, strict=True)
            ],
            uses_mask=True,
        )
        labels = inputs.pop("labels")
        loss = learner.loss(model(**inputs), inputs, labels) / (labels >= 0).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        recent = [*recent[-49:], float(loss.detach())]
        if step % 100 == 0 or step == recipe.steps:
            mean = sum(recent) / len(recent)
            print(f"step {step}/{recipe.steps} loss {mean:.3f} {time.monotonic() - started:.0f} s", flush=True)
    return sum(recent) / len(recent)


def pretrain(out: Path, recipe: Recipe) -> dict[str, Any]:
    """Pre-train and write `out`: a plain transformers folder (fp16 safetensors) and card.json; returns the card."""
    import torch
    import transformers
    from transformers import Wav2Vec2FeatureExtractor

    from edgeqlora.models.wav2vec2.processor import Wav2Vec2Processor
    from edgeqlora_jetson.files import atomic_folder, write_json

    torch.manual_seed(recipe.seed)
    started = time.monotonic()
    tokenizer = build_tokenizer()
    model = build_model(recipe, len(tokenizer))
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    processor = Wav2Vec2Processor(str(out), tokenizer, extractor, model.config)
    loss = train(model, processor, recipe)
    card = {
        "schema": "edgeqlora.pretrain/1",
        "recipe": recipe._asdict(),
        "loss": round(loss, 4),
        "wall_time_s": round(time.monotonic() - started, 1),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with atomic_folder(out) as folder:
        model.to(torch.float16).save_pretrained(folder)
        processor.save(Path(folder))
        write_json(Path(folder, "card.json"), card)
    return card


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, pre-train, print the figures."""
    parser = argparse.ArgumentParser(prog="python -m edgeqlora.demo.pretrain_ctc", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    options = parser.parse_args(arguments)
    card = pretrain(options.out, Recipe(steps=options.steps, seed=options.seed))
    print(f"loss {card['loss']:.3f} nats per character ({card['wall_time_s']:.0f} s)")
    print(f"wrote {options.out}; next: edgeqlora evaluate {options.out} --data {speech_dir() / 'test.jsonl'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
