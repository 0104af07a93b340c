"""Greedy recognition and teacher-forced loss with a torch model: what training, evaluation and merging score with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from edgeqlora.data.audio import SAMPLE_RATE_HZ, load_audio, probe
from edgeqlora.data.batching import IGNORE, window_of
from edgeqlora.data.row import Row
from edgeqlora.data.silence import TimeMap
from edgeqlora.errors import UserError
from edgeqlora.models.family import Learner
from edgeqlora.models.quantised import plain_model
from edgeqlora_jetson.audio.windows import choose_window, split_long
from edgeqlora_jetson.text import join_pieces, written_language
from edgeqlora_jetson.transcribe import Segment

Progress = Callable[[int, int], None]
_T = TypeVar("_T")

CHUNK = 256
"""Clips whose audio is held in memory at a time."""

BATCH_SIZE = 32
"""Clips that a model gets at a time, where nobody asks for another number and a GPU's memory allows it."""


@dataclass
class Recognition:
    """Texts of some clips, and what recognising them took."""

    texts: list[str] = field(default_factory=list)
    """One text a clip, in the order of the rows; empty for one that has no speech."""
    segments: list[list[Segment] | None] = field(default_factory=list)
    """Of each clip, with times in its recording, silence that was cut away included; None: the decoder gives no times."""
    processing_s: float = 0.0
    """Features, encoder and decoder together; reading files left out."""
    audio_s: float = 0.0
    """Seconds that the model heard."""
    n_pieces: list[int] = field(default_factory=list)
    """Windows that each clip was cut into (1: it fitted; 0: it has no speech)."""
    n_incomplete: int = 0
    """Pieces whose text repeated itself, or stopped at the limit of tokens."""


class Recogniser:
    """One model with its decoding rules and windows.

    Where a GPU's memory does not hold a batch, half of it is taken from then on; `say` is told the first time.
    """

    def __init__(
        self,
        learner: Learner,
        windows_s: Sequence[float],
        language: str | None = None,
        task: str | None = None,
        tokens_per_s: float | None = None,
        say: Callable[[str], object] = lambda text: None,
    ):
        self.learner, self.windows_s = learner, sorted(windows_s)
        self.decoder = learner.decoder(self.windows_s, language, task, tokens_per_s)
        self.written_language = written_language(self.decoder.language, task)
        """Code of the language that the texts are in; None: not known."""
        self._say = say
        self.most_clips: dict[float, int] = {}
        """Window -> clips that fit into the GPU's memory at a time; windows whose batches all fitted are not in it."""

    def recognise(
        self, rows: Sequence[Row], batch_size: int = BATCH_SIZE, progress: Progress | None = None
    ) -> Recognition:
        """Texts of `rows`. Clips longer than the largest window are cut at quiet places, and the texts joined.

        UserError where a GPU's memory does not hold one clip.
        """
        result = Recognition()
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            part = self._recognise_chunk(chunk, batch_size)
            result.texts += part.texts
            result.segments += part.segments
            result.n_pieces += part.n_pieces
            result.processing_s += part.processing_s
            result.audio_s += part.audio_s
            result.n_incomplete += part.n_incomplete
            if progress:
                progress(len(result.texts), len(rows))
        return result

    def _recognise_chunk(self, rows: Sequence[Row], batch_size: int) -> Recognition:
        pieces: list[tuple[int, float, np.ndarray, int]] = []
        result = Recognition(n_pieces=[0] * len(rows))
        for i, row in enumerate(rows):
            if row.kept == ():
                continue
            audio = load_audio(row)
            result.audio_s += audio.size / SAMPLE_RATE_HZ
            window = choose_window(audio.size, self.windows_s, SAMPLE_RATE_HZ)
            for start, end in split_long(audio, window, SAMPLE_RATE_HZ):
                pieces.append((i, window, audio[start:end], start))
                result.n_pieces[i] += 1
        texts = [""] * len(pieces)
        segments: list[Sequence[Segment] | None] = [None] * len(pieces)
        # Clips of one window together, longest first: the first batch shows whether memory suffices.
        order = sorted(range(len(pieces)), key=lambda p: (-pieces[p][1], -pieces[p][2].size, p))
        done = 0
        while done < len(order):
            window = pieces[order[done]][1]
            n_clips = min(batch_size, self.most_clips.get(window, batch_size))
            batch = [p for p in order[done : done + n_clips] if pieces[p][1] == window]
            start_s = time.perf_counter()
            clips = [pieces[p][2] for p in batch]
            features = np.stack([self.learner.processor.features(clip, window) for clip in clips])
            n_valid = [self.learner.processor.n_valid_frames(clip.size, window) for clip in clips]
            found = self._unless_full(partial(self.decoder.transcribe, features, n_valid, window), window, len(batch))
            if found is None:
                continue
            for p, transcription in zip(batch, found, strict=True):
                texts[p], segments[p] = transcription.text, transcription.segments
                result.n_incomplete += not transcription.is_complete
            result.processing_s += time.perf_counter() - start_s
            done += len(batch)
        of_row: list[list[int]] = [[] for _ in rows]
        for p, piece in enumerate(pieces):
            of_row[piece[0]].append(p)
        result.texts = [join_pieces([texts[p] for p in of], self.written_language) for of in of_row]
        result.segments = [
            _in_recording(row, [(segments[p], pieces[p][3]) for p in of]) for row, of in zip(rows, of_row, strict=True)
        ]
        return result

    def cross_entropy(self, rows: Sequence[Row], batch_size: int = BATCH_SIZE) -> tuple[float, int]:
        """Teacher-forced loss: (sum of -ln p over the labels, number of labels); perplexity = exp(sum / n).

        Clips longer than the largest window or without speech, and texts over the model's limit, are left out: no loss is
        defined there.
        UserError where a GPU's memory does not hold one clip.
        """
        processor = self.learner.processor
        limit = processor.label_rules().max_text_tokens
        samples: dict[float, list[tuple[Row, list[int]]]] = {}
        for row in rows:
            if row.kept == ():
                continue
            duration_s = probe(row)[1]
            window, ids = window_of(duration_s, self.windows_s), processor.text_ids(row.text)
            if window is not None and (limit is None or len(ids) <= limit) and processor.fits(ids, duration_s):
                samples.setdefault(window, []).append((row, [*ids, *processor.end_ids]))
        total, count = 0.0, 0
        for window, clips in samples.items():
            done = 0
            while done < len(clips):
                n_clips = min(batch_size, self.most_clips.get(window, batch_size))
                batch = clips[done : done + n_clips]
                found = self._unless_full(partial(self._batch_loss, batch, window), window, len(batch))
                if found is not None:
                    total, count, done = total + found[0], count + found[1], done + len(batch)
        return total, count

    def _batch_loss(self, clips: Sequence[tuple[Row, list[int]]], window: float) -> tuple[float, int]:
        """Summed loss and number of labels of clips with their ids, all in one window."""
        import torch

        learner, processor = self.learner, self.learner.processor
        model = plain_model(learner.model)
        part = [(load_audio(row), ids) for row, ids in clips]
        inputs = self.decoder.collate(
            [
                {
                    "features": processor.features(audio, window),
                    "n_valid": processor.n_valid_frames(audio.size, window),
                    "target_ids": ids,
                }
                for audio, ids in part
            ]
        )
        labels = inputs.pop("labels").to(model.device)
        inputs = {
            name: value.to(device=model.device, dtype=model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        with torch.no_grad(), learner.window(inputs):
            total = float(learner.loss(model(**inputs), inputs, labels))
        return total, int((labels != IGNORE).sum())

    def _unless_full(self, work: Callable[[], _T], window: float, n_clips: int) -> _T | None:
        """What `work` on n_clips clips gives; None where the GPU's memory was too small, and half of them are next."""
        import torch

        try:
            return work()
        except torch.cuda.OutOfMemoryError as error:
            if n_clips == 1:
                raise UserError(
                    f"one clip in a window of {window:g} s does not fit into the GPU's memory: stop what else uses it "
                    "(nvidia-smi), take shorter windows, or compute on the processor (CUDA_VISIBLE_DEVICES= before the command)"
                ) from error
        # Only here, after the error: its traceback held the tensors of the batch.
        torch.cuda.empty_cache()
        if not self.most_clips:
            self._say(
                f"The GPU's memory does not hold {n_clips} clips in a window of {window:g} s: "
                f"recognising goes on with {n_clips // 2} at a time"
            )
        self.most_clips[window] = n_clips // 2
        return None


def _in_recording(row: Row, pieces: Sequence[tuple[Sequence[Segment] | None, int]]) -> list[Segment] | None:
    """Segments of a clip's pieces, each with the sample at which it begins, with their times in the recording.

    None where the decoder gives no times.
    """
    times = TimeMap(row.kept) if row.kept else None
    found: list[Segment] = []
    for segments, first in pieces:
        if segments is None:
            return None
        for text, *seconds in segments:
            start, end = (first + round(second * SAMPLE_RATE_HZ) for second in seconds)
            if times is not None:
                start, end = times.to_recording(start), times.to_recording(end, is_end=True)
            found.append(Segment(text, start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ))
    return found
