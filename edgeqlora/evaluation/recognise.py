"""Greedy recognition and teacher-forced loss with a torch model: what training, evaluation and merging score with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeqlora.data.audio import SAMPLE_RATE_HZ, load_audio, probe
from edgeqlora.data.batching import Collator, window_of
from edgeqlora.data.features import MelExtractor
from edgeqlora.data.row import Row
from edgeqlora.data.text import text_ids
from edgeqlora.models.whisper import SpeechModel
from edgeqlora_export.whisper.decoding import decoding_spec, torch_greedy
from edgeqlora_export.whisper.windowed import windowed
from edgeqlora_jetson.audio.windows import choose_window, split_long

Progress = Callable[[int, int], None]

CHUNK = 256
"""Clips whose audio is held in memory at a time."""


@dataclass
class Recognition:
    """Texts of some clips, and what recognising them took."""

    texts: list[str]
    """One text a clip, in the order of the rows."""
    processing_s: float = 0.0
    """Log-mel, encoder and decoder together; reading files left out."""
    audio_s: float = 0.0
    n_pieces: list[int] = field(default_factory=list)
    """Windows that each clip was cut into (1: it fitted)."""

    @property
    def rtf(self) -> float | None:
        """Real-time factor: processing time / audio time; lower is better."""
        return self.processing_s / self.audio_s if self.audio_s else None


class Recogniser:
    """One model with its decoding rules and windows.

    The rules (prompt, suppressed ids, token limit) are `decoding_spec`'s, which also go into the bundle: training,
    evaluation and board say the same.
    """

    def __init__(
        self,
        speech: SpeechModel,
        windows_s: Sequence[float],
        language: str | None = None,
        task: str = "transcribe",
    ):
        self.speech, self.windows_s = speech, sorted(windows_s)
        self.spec: dict[str, Any] = decoding_spec(
            speech.model, speech.tokenizer, speech.model.generation_config, self.windows_s, language, task
        )
        self.mels = MelExtractor(speech.feature_extractor)

    def recognise(self, rows: Sequence[Row], batch_size: int = 32, progress: Progress | None = None) -> Recognition:
        """Texts of `rows`. Clips longer than the largest window are cut at quiet places, and the texts joined."""
        result = Recognition([], n_pieces=[])
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            part = self._recognise_chunk(chunk, batch_size)
            result.texts += part.texts
            result.n_pieces += part.n_pieces
            result.processing_s += part.processing_s
            result.audio_s += part.audio_s
            if progress:
                progress(len(result.texts), len(rows))
        return result

    def _recognise_chunk(self, rows: Sequence[Row], batch_size: int) -> Recognition:
        pieces: list[tuple[int, float, np.ndarray]] = []
        result = Recognition([""] * len(rows), n_pieces=[0] * len(rows))
        for i, row in enumerate(rows):
            audio = load_audio(row)
            result.audio_s += audio.size / SAMPLE_RATE_HZ
            window = choose_window(audio.size, self.windows_s, SAMPLE_RATE_HZ)
            for start, end in split_long(audio, window, SAMPLE_RATE_HZ):
                pieces.append((i, window, audio[start:end]))
                result.n_pieces[i] += 1
        texts = [""] * len(pieces)
        # Clips of one window together, longest first: the first batch shows whether memory suffices.
        order = sorted(range(len(pieces)), key=lambda p: (-pieces[p][1], -pieces[p][2].size, p))
        done = 0
        while done < len(order):
            window = pieces[order[done]][1]
            batch = [p for p in order[done : done + batch_size] if pieces[p][1] == window]
            start_s = time.perf_counter()
            mel = np.stack([self.mels.mel(pieces[p][2], window) for p in batch])
            for p, text in zip(batch, self.decode(mel, window), strict=True):
                texts[p] = text
            result.processing_s += time.perf_counter() - start_s
            done += len(batch)
        for (i, _, _), text in zip(pieces, texts, strict=True):
            result.texts[i] = f"{result.texts[i]} {text}".strip()
        return result

    def decode(self, mel: np.ndarray, window_s: float) -> list[str]:
        """Greedy texts of log-mels of shape (batch, n_mels, 100 * window_s)."""
        tokens = torch_greedy(
            _plain(self.speech.model), mel, self.spec, self.spec["max_new_tokens"][str(float(window_s))]
        )
        return [self.speech.tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in tokens]

    def cross_entropy(self, rows: Sequence[Row], batch_size: int = 32) -> tuple[float, int]:
        """Teacher-forced loss: (sum of -ln p over text and end tokens, number of tokens); perplexity = exp(sum / n).

        Clips longer than the largest window, and texts over the model's limit, are left out: no loss is defined there.
        """
        import torch

        model, tokenizer = _plain(self.speech.model), self.speech.tokenizer
        collate = Collator(self.spec["prompt_ids"], self.spec["eos_id"])
        limit = model.config.max_target_positions - len(self.spec["prompt_ids"])
        samples: dict[float, list[tuple[Row, list[int]]]] = {}
        for row in rows:
            window = window_of(probe(row)[1], self.windows_s)
            ids = target_ids(tokenizer, row.text, self.spec["eos_id"])
            if window is not None and len(ids) <= limit:
                samples.setdefault(window, []).append((row, ids))
        total, count = 0.0, 0
        for window, clips in samples.items():
            for start in range(0, len(clips), batch_size):
                batch = collate(
                    [
                        {"mel": self.mels.mel(load_audio(row), window), "target_ids": ids}
                        for row, ids in clips[start : start + batch_size]
                    ]
                )
                labels = batch.pop("labels").to(model.device)
                features = batch.pop("input_features").to(
                    device=model.device, dtype=model.get_encoder().conv1.weight.dtype
                )
                with torch.no_grad(), windowed(model, window):
                    logits = model(
                        input_features=features, decoder_input_ids=batch["decoder_input_ids"].to(model.device)
                    ).logits
                loss = torch.nn.functional.cross_entropy(
                    logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
                )
                total += float(loss)
                count += int((labels != -100).sum())
        return total, count


def perplexity(loss: tuple[float, int]) -> float | None:
    """exp(mean cross-entropy per token), or None when there was no token."""
    total, count = loss
    return math.exp(total / count) if count else None


def target_ids(tokenizer: Any, text: str, eos_id: int) -> list[int]:
    """What the decoder must say for `text`: its subword ids, then end of text. The prompt is not part of it."""
    return [*text_ids(tokenizer, text), eos_id]


def _plain(model: Any) -> Any:
    """The Whisper model inside PEFT's and DDP's wrappers, adapters active."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
