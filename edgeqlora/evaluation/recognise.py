"""Greedy recognition and teacher-forced loss with a torch model: what training, evaluation and merging score with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from edgeqlora.data.audio import SAMPLE_RATE_HZ, load_audio
from edgeqlora.data.row import Row
from edgeqlora.data.silence import TimeMap
from edgeqlora.errors import UserError
from edgeqlora.models.family import Features, Learner, Transcription
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
    losses: list[tuple[float, int] | None] = field(default_factory=list)
    """Where they were asked for, of each clip: cross-entropy of its text in nats, summed, and its number of labels. None: a
    clip longer than the largest window, or without speech, or whose text the model cannot be asked for."""

    @property
    def loss(self) -> tuple[float, int]:
        """Sum and number of labels over all clips that have a loss; perplexity is exp(sum / number)."""
        known = [loss for loss in self.losses if loss]
        return sum(total for total, _ in known), sum(count for _, count in known)


class _Heard(NamedTuple):
    """Of a batch: texts, losses (0 where none was asked for), and the time that the texts took."""

    transcriptions: list[Transcription]
    losses: list[float]
    processing_s: float


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
        self._max_text_tokens = learner.processor.label_rules().max_text_tokens
        self._say = say
        self.most_clips: dict[float, int] = {}
        """Window -> clips that fit into the GPU's memory at a time; windows whose batches all fitted are not in it."""

    def recognise(
        self,
        rows: Sequence[Row],
        batch_size: int = BATCH_SIZE,
        progress: Progress | None = None,
        with_losses: bool = False,
    ) -> Recognition:
        """Texts of `rows`. Clips longer than the largest window are cut at quiet places, and the texts joined.

        with_losses: also the teacher-forced loss of each clip's own text, for which nothing is heard a second time.
        UserError where a GPU's memory does not hold one clip.
        """
        result = Recognition()
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            part = self._recognise_chunk(chunk, batch_size, with_losses)
            result.texts += part.texts
            result.segments += part.segments
            result.n_pieces += part.n_pieces
            result.losses += part.losses
            result.processing_s += part.processing_s
            result.audio_s += part.audio_s
            result.n_incomplete += part.n_incomplete
            if progress:
                progress(len(result.texts), len(rows))
        return result

    def _recognise_chunk(self, rows: Sequence[Row], batch_size: int, with_losses: bool) -> Recognition:
        pieces: list[tuple[int, float, Features, int]] = []
        targets: dict[int, list[int]] = {}
        result = Recognition(n_pieces=[0] * len(rows), losses=[None] * len(rows) if with_losses else [])
        for i, row in enumerate(rows):
            if row.kept == ():
                continue
            audio = load_audio(row)
            result.audio_s += audio.size / SAMPLE_RATE_HZ
            window = choose_window(audio.size, self.windows_s, SAMPLE_RATE_HZ)
            for start, end in split_long(audio, window, SAMPLE_RATE_HZ):
                pieces.append((i, window, audio[start:end], start))
                result.n_pieces[i] += 1
            if with_losses and result.n_pieces[i] == 1 and (target := self._target(row, audio)) is not None:
                targets[i] = target
        texts = [""] * len(pieces)
        segments: list[Sequence[Segment] | None] = [None] * len(pieces)
        # Clips of one window together, longest first: the first batch shows whether memory suffices.
        order = sorted(range(len(pieces)), key=lambda p: (-pieces[p][1], -pieces[p][2].size, p))
        done = 0
        while done < len(order):
            window = pieces[order[done]][1]
            n_clips = min(batch_size, self.most_clips.get(window, batch_size))
            batch = [p for p in order[done : done + n_clips] if pieces[p][1] == window]
            clips, ids = [pieces[p][2] for p in batch], [targets.get(pieces[p][0]) for p in batch]
            found = self._unless_full(partial(self._hear, clips, ids, window), window, len(batch))
            if found is None:
                continue
            for p, transcription, loss in zip(batch, found.transcriptions, found.losses, strict=True):
                texts[p], segments[p] = transcription.text, transcription.segments
                result.n_incomplete += not transcription.is_complete
                if (target := targets.get(pieces[p][0])) is not None:
                    result.losses[pieces[p][0]] = (loss, len(target))
            result.processing_s += found.processing_s
            done += len(batch)
        of_row: list[list[int]] = [[] for _ in rows]
        for p, piece in enumerate(pieces):
            of_row[piece[0]].append(p)
        result.texts = [join_pieces([texts[p] for p in of], self.written_language) for of in of_row]
        result.segments = [
            _in_recording(row, [(segments[p], pieces[p][3]) for p in of]) for row, of in zip(rows, of_row, strict=True)
        ]
        return result

    def _hear(self, clips: Sequence[Features], target_ids: Sequence[list[int] | None], window: float) -> _Heard:
        """Clips of one window, with losses where one of them at least has ids."""
        processor, start_s = self.learner.processor, time.perf_counter()
        features = np.stack([processor.features(clip, window) for clip in clips])
        n_valid = [processor.n_valid_frames(clip.size, window) for clip in clips]
        found = self.decoder.transcribe(features, n_valid, window)
        processing_s, losses = time.perf_counter() - start_s, [0.0] * len(clips)
        if any(ids is not None for ids in target_ids):
            losses = self.decoder.losses(found, [processor.end_ids if ids is None else ids for ids in target_ids])
        # Without what was heard: it is a part of the whole batch, which would stay in memory.
        return _Heard([one._replace(heard=None) for one in found], losses, processing_s)

    def _target(self, row: Row, audio: Features) -> list[int] | None:
        """Ids of the text that a clip in a window of its own should have, or None where no loss is defined."""
        processor, limit = self.learner.processor, self._max_text_tokens
        ids = processor.text_ids(row.text)
        if (limit is not None and len(ids) > limit) or not processor.fits(ids, audio.size / SAMPLE_RATE_HZ):
            return None
        return [*ids, *processor.end_ids]

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
