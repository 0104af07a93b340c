"""Exporter (see family.py) of a Wav2Vec2ForCTC."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from edgeqlora_export.family import Progress, difference_gate, read_part, text_gate, token_gate
from edgeqlora_export.gates import attach_gates
from edgeqlora_export.wav2vec2.checks import LONGEST_WINDOW_S, Vocabulary, check_task, check_window, read_vocabulary
from edgeqlora_export.wav2vec2.frames import frame_parts
from edgeqlora_export.wav2vec2.graphs import export_ctc
from edgeqlora_jetson.audio.features import WaveformFeatures, n_outputs
from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ, window_samples
from edgeqlora_jetson.decoders import CtcDecoder, collapse, spell
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import write_text
from edgeqlora_jetson.schema import Gate, Manifest

FEATURE_LIMIT = 1e-5
"""Largest difference allowed between the runner's normalised samples and the model's own extractor, times the largest of
them (at least 1; measured: 2e-6)."""

RELATIVE_LIMIT = 5e-4
"""Largest difference allowed of logits, times the largest magnitude of the reference (at least 1; measured: 8e-6)."""

BATCH_SIZES = (1, 2, 4)


class Wav2Vec2Exporter:
    """A merged CTC model with its feature extractor and vocabulary."""

    others: Mapping[str, Any] = {}

    def __init__(self, model: Any, extractor: Any, vocabulary: Vocabulary):
        self.base_model, self.extractor, self._vocabulary = model, extractor, vocabulary
        self._kernels = [int(n) for n in model.config.conv_kernel]
        self._strides = [int(n) for n in model.config.conv_stride]
        self._uses_mask = bool(extractor.return_attention_mask)

    def check_windows(self, windows_s: Sequence[float]) -> list[float]:
        if not windows_s:
            raise UserError(f"windows_s is empty: give one or more windows of at most {LONGEST_WINDOW_S:g} s")
        for window_s in windows_s:
            check_window(window_s)
            if not self._n_steps(window_s):
                raise UserError(f"window_s={window_s:g} is shorter than one step of the model's output")
        return sorted({float(window_s) for window_s in windows_s})

    def describe(
        self,
        windows_s: Sequence[float],
        language: str | None,
        task: str | None,
        tokens_per_s: float | None = None,
        for_cpu: bool = False,
    ) -> dict[str, Any]:
        check_task(task)
        return {
            "model": {"family": "wav2vec2", "vocab_size": int(self.base_model.config.vocab_size)},
            "features": {"kind": "waveform", "normalise": bool(self.extractor.do_normalize)},
            "decoder": {
                "kind": "ctc",
                "blank_id": self._vocabulary.blank_id,
                "word_delimiter": self._vocabulary.delimiter,
                "uses_mask": self._uses_mask,
                "conv_kernel": self._kernels,
                "conv_stride": self._strides,
                "language": language,
                "task": "transcribe",
                "detokenizer": "characters.json",
            },
        }

    def export_graphs(self, folder: Path, opset: int, for_cpu: bool = False) -> dict[str, Path]:
        path = folder / "ctc.onnx"
        export_ctc(self.base_model, path, attention_mask=self._uses_mask, opset=opset)
        return {"ctc": path}

    def engine_graphs(self, manifest: Manifest, max_batch: int) -> dict[str, Any]:
        """One optimization profile a window: samples and steps are fixed by it."""
        batches = {"min": 1, "opt": 1, "max": max_batch}
        profiles, longest = [], 0
        for window_s in sorted(manifest["audio"]["windows_s"]):
            n_steps = self._n_steps(window_s)
            longest = max(longest, n_steps)
            inputs = {"audio": {k: [b, window_samples(window_s, SAMPLE_RATE_HZ)] for k, b in batches.items()}}
            if self._uses_mask:
                inputs["frame_mask"] = {k: [b, n_steps] for k, b in batches.items()}
            profiles.append({"name": f"window {window_s:g} s", "inputs": inputs})
        return {
            "ctc": {
                "optimization_profiles": profiles,
                "outputs": {"logits": [max_batch, longest, manifest["model"]["vocab_size"]]},
                "on_device": [],
            }
        }

    def write_tables(self, folder: Path, manifest: Manifest) -> None:
        table = json.dumps(self._vocabulary.characters, ensure_ascii=False, separators=(",", ":"))
        write_text(folder / manifest["decoder"]["detokenizer"], table + "\n")

    def prove(
        self, bundle: Any, runtime: Any, audios: Sequence[np.ndarray], progress: Progress = lambda message: None
    ) -> list[Gate]:
        """Samples against the extractor, logits of every batch size, tokens and text of every clip."""
        decoder, features = CtcDecoder(runtime, bundle.manifest), WaveformFeatures(bundle)
        read_board = decoder.read_table(bundle.load_detokenizer())
        gates: list[Gate] = []
        worst = 0.0
        for window_s in bundle.windows_s:
            progress(f"parity with torch at {window_s:g} s: {len(audios)} clips")
            length = window_samples(window_s, SAMPLE_RATE_HZ)
            clips = [audio[:length] for audio in audios]
            batch, n_samples = features(clips, window_s), [len(clip) for clip in clips]
            own = np.concatenate([self._extract(clip, length) for clip in clips])
            worst = max(worst, float(np.abs(batch - own).max()) / max(1.0, float(np.abs(own).max())))
            references, cases = [], []
            for start in range(0, len(clips), max(BATCH_SIZES)):
                references.append(self._torch_logits(batch[start : start + 4], n_samples[start : start + 4]))
            reference = np.concatenate(references)
            for size in BATCH_SIZES:
                part = np.ascontiguousarray(np.resize(batch, (size, length)))
                counts = [n_samples[i % len(clips)] for i in range(size)]
                found = decoder.logits(part, counts)
                for i, n in enumerate(counts):
                    valid = self._n_valid(n, found.shape[1])
                    difference = np.abs(found[i, :valid] - reference[i % len(clips), :valid])
                    cases.append(float(difference.max(initial=0.0)))
            limit = RELATIVE_LIMIT * max(1.0, float(np.abs(reference).max()))
            sizes = "/".join(map(str, BATCH_SIZES))
            gates.append(
                difference_gate(
                    f"logits at {window_s:g} s", max(cases), limit, f"max abs difference over batch {sizes}"
                )
            )
            expected = [
                collapse(row[: self._n_valid(n, len(row))].argmax(-1).tolist(), self._vocabulary.blank_id)
                for row, n in zip(reference, n_samples, strict=True)
            ]
            found_tokens = decoder.decode(batch, n_samples, window_s).tokens
            gates.append(token_gate(window_s, expected, found_tokens))
            words = self._vocabulary
            texts = [spell(tokens, words.characters, words.delimiter) for tokens in expected]
            gates.append(text_gate(window_s, texts, list(map(read_board, found_tokens))))
        detail = f"max difference from the model's extractor, relative to the loudest sample, over {len(audios)} clips, {len(bundle.windows_s)} windows"
        return [difference_gate("samples", worst, FEATURE_LIMIT, detail), *gates]

    def _n_steps(self, window_s: float) -> int:
        return n_outputs(window_samples(window_s, SAMPLE_RATE_HZ), self._kernels, self._strides)

    def _n_valid(self, n_samples: int, n_steps: int) -> int:
        return n_outputs(n_samples, self._kernels, self._strides) if self._uses_mask else n_steps

    def _extract(self, audio: np.ndarray, length: int) -> np.ndarray:
        """The extractor's own samples of one clip, padded behind it: float32 (1, length)."""
        values = self.extractor(audio, sampling_rate=SAMPLE_RATE_HZ, return_tensors="np")["input_values"][0]
        return np.pad(values, (0, length - len(values)))[np.newaxis].astype(np.float32)

    def _torch_logits(self, batch: np.ndarray, n_samples: Sequence[int]) -> np.ndarray:
        inputs = {"input_values": torch.from_numpy(batch)}
        if self._uses_mask:
            mask = np.arange(batch.shape[1])[np.newaxis] < np.array(n_samples)[:, np.newaxis]
            inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        with torch.no_grad():
            logits: np.ndarray = self.base_model(**inputs).logits.numpy()
        return logits


def load_exporter(folder: Path) -> Wav2Vec2Exporter:
    """Model in fp32 and eval mode, tokenizer, feature extractor. UserError where a part of it cannot be read."""
    model = read_part(folder, "weights", lambda: Wav2Vec2ForCTC.from_pretrained(folder, dtype=torch.float32))
    tokenizer = read_part(folder, "tokenizer", lambda: Wav2Vec2CTCTokenizer.from_pretrained(folder))
    extractor = read_part(folder, "preprocessor", lambda: Wav2Vec2FeatureExtractor.from_pretrained(folder))
    attach_gates(model, folder, *frame_parts(model))
    return Wav2Vec2Exporter(model.eval(), extractor, read_vocabulary(folder, tokenizer, extractor, model.config))
