"""Exporter (see family.py) of a WhisperForConditionalGeneration."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, WhisperFeatureExtractor, WhisperForConditionalGeneration

from edgeqlora_export.family import Progress, difference_gate, read_part
from edgeqlora_export.gates import attach_gates
from edgeqlora_export.whisper.also import WRITERS
from edgeqlora_export.whisper.checks import HOP_LENGTH, N_FFT, check_parts, load_generation
from edgeqlora_export.whisper.decoding import decoding_spec
from edgeqlora_export.whisper.detokenizer import added_tokens_gate, detokenizer_table
from edgeqlora_export.whisper.engine_graphs import engine_graphs
from edgeqlora_export.whisper.frames import frame_parts
from edgeqlora_export.whisper.graphs import export_whisper
from edgeqlora_export.whisper.graphs.modules import model_constants
from edgeqlora_export.whisper.languages import is_multilingual
from edgeqlora_export.whisper.parity import measure_parity
from edgeqlora_export.whisper.windowed import model_window_s, window_frames
from edgeqlora_jetson.audio.logmel import LogMel
from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ
from edgeqlora_jetson.decoders import Detokenizer
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import write_json, write_text
from edgeqlora_jetson.schema import Gate, Manifest

MEL_LIMIT = 1e-4
"""Largest difference allowed between the runner's log-mel and the model's own feature extractor."""


class WhisperExporter:
    """A merged Whisper with tokenizer, feature extractor and generation config."""

    others = WRITERS

    def __init__(self, folder: Path, model: Any, tokenizer: Any, extractor: Any, generation: Any):
        self.folder = folder
        self.base_model, self.tokenizer, self.extractor, self.generation = model, tokenizer, extractor, generation
        self._filters = np.asarray(extractor.mel_filters, dtype=np.float32)

    def check_windows(self, windows_s: Sequence[float]) -> list[float]:
        native_s = model_window_s(self.base_model)
        if not windows_s:
            raise UserError(f"windows_s is empty: give one or more windows of at most {native_s:g} s, such as 2")
        for window_s in windows_s:
            window_frames(window_s, max_window_s=native_s)
        return sorted({float(window_s) for window_s in windows_s})

    def describe(
        self,
        windows_s: Sequence[float],
        language: str | None,
        task: str | None,
        tokens_per_s: float | None = None,
        for_cpu: bool = False,
    ) -> dict[str, Any]:
        spec = decoding_spec(
            self.base_model, self.tokenizer, self.generation, list(windows_s), language, task, tokens_per_s
        )
        return {
            "model": {
                "family": "whisper",
                **model_constants(self.base_model),
                "multilingual": is_multilingual(self.base_model.config, self.generation, self.tokenizer),
            },
            "features": {
                "kind": "log-mel",
                "n_fft": N_FFT,
                "hop_length": HOP_LENGTH,
                "n_mels": self._filters.shape[1],
                "mel_filters": "mel_filters.npy",
            },
            "decoder": {"kind": "greedy-buffered" if for_cpu else "greedy", **spec},
        }

    def export_graphs(self, folder: Path, opset: int, for_cpu: bool = False) -> dict[str, Path]:
        return export_whisper(self.base_model, folder, opset, buffered=for_cpu)

    def engine_graphs(self, manifest: Manifest, max_batch: int) -> dict[str, Any]:
        return engine_graphs(
            model=manifest["model"],
            windows_s=manifest["audio"]["windows_s"],
            n_prompt=len(manifest["decoder"]["prompt_ids"]),
            max_new_tokens=manifest["decoder"]["max_new_tokens"],
            max_batch=max_batch,
        )

    def write_tables(self, folder: Path, manifest: Manifest) -> None:
        np.save(folder / manifest["features"]["mel_filters"], self._filters, allow_pickle=False)
        text = json.dumps(self.token_table(), ensure_ascii=False, separators=(",", ":"))
        write_text(folder / manifest["decoder"]["detokenizer"], text + "\n")
        spelling = getattr(self.tokenizer, "english_spelling_normalizer", None)
        if spelling:  # so that `whisper-english` scores a bundle as it scores the folder
            write_json(folder / "normalizer.json", spelling)

    def prove(
        self, bundle: Any, runtime: Any, audios: Sequence[np.ndarray], progress: Progress = lambda message: None
    ) -> list[Gate]:
        mels = {w: extract_mel(self.extractor, audios, window_frames(w)) for w in bundle.windows_s}
        log_mel = LogMel(self._filters, N_FFT, HOP_LENGTH)
        worst = max(
            float(np.abs(log_mel(audio, mel.shape[1]) - mel).max())
            for batch in mels.values()
            for audio, mel in zip(audios, batch, strict=True)
        )
        detail = f"max abs difference from the model's extractor over {len(audios)} clips, {len(mels)} windows"
        read_torch, read_board = Detokenizer(self.token_table()), Detokenizer(bundle.load_detokenizer())
        return [
            difference_gate("log-mel", worst, MEL_LIMIT, detail),
            *measure_parity(self.base_model, runtime, mels, bundle.manifest, read_torch, read_board, progress),
            added_tokens_gate(self.tokenizer, read_board),
        ]

    def token_table(self) -> list[str | None]:
        """For each token id its bytes as a latin-1 string, or None for what is not text."""
        return detokenizer_table(self.tokenizer, self.base_model.config.vocab_size)


def load_exporter(folder: Path) -> WhisperExporter:
    """Model in fp32 and eval mode with all that belongs to it.

    Raises UserError when a part cannot be read, or the parts do not belong together (see check_parts).
    """
    model = read_part(
        folder, "weights", lambda: WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    )
    tokenizer = read_part(folder, "tokenizer", lambda: AutoTokenizer.from_pretrained(folder))
    extractor = read_part(folder, "preprocessor", lambda: WhisperFeatureExtractor.from_pretrained(folder))
    generation = read_part(folder, "generation config", lambda: load_generation(folder, model.config))
    check_parts(folder, tokenizer, extractor, model.config, generation)
    attach_gates(model, folder, *frame_parts(model))
    return WhisperExporter(folder, model.eval(), tokenizer, extractor, generation)


def extract_mel(extractor: Any, audios: Sequence[np.ndarray], n_frames: int) -> np.ndarray:
    """Log-mel by the model's own extractor, clips zero-padded or cut: float32 (n_clips, n_mels, n_frames)."""
    n_samples = n_frames * HOP_LENGTH
    padded = np.zeros((len(audios), n_samples), dtype=np.float32)
    for row, audio in zip(padded, audios, strict=True):
        row[: len(audio)] = audio[:n_samples]
    rows = [
        extractor(row, sampling_rate=SAMPLE_RATE_HZ, padding="do_not_pad", truncation=False, return_tensors="np")
        for row in padded
    ]
    return np.concatenate([row["input_features"] for row in rows]).astype(np.float32)
