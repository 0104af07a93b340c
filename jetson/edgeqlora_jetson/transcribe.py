"""Clips to text: window choice, features, decoding, detokenizing."""

import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np

from .audio.features import FEATURES
from .audio.windows import choose_window, split_long, window_samples
from .bundle import Bundle
from .decoders import open_decoder
from .text import join_pieces, written_language


class Segment(NamedTuple):
    """A stretch of a transcript with its times in the clip."""

    text: str
    start_s: float
    end_s: float


class Transcript(NamedTuple):
    """What one clip says, and what it took to find out.

    In a batch, all clips of it carry the times of the batch: none is ready before the others.
    """

    text: str
    tokens: List[int]  # without prompt and end token; of all pieces
    window_s: float  # audio seconds the encoder saw at a time
    n_pieces: int  # above 1: longer than the largest window, cut at quiet places
    n_incomplete: int  # pieces that repeated themselves or ran into max_new_tokens
    n_steps: int  # decoder runs; 0: the decoder has none
    phases_ms: Dict[str, float]  # features, then the decoder's own, one after the other; of all pieces
    first_token_ms: Optional[float]  # from the call to the first token of the first piece; None: all come at once
    total_ms: float  # from the call to the text
    audio_s: float
    segments: Optional[List[Segment]] = None  # None: this decoder gives no times


class Transcriber(object):
    """A bundle ready to transcribe in an opened runtime."""

    def __init__(self, bundle: Bundle, runtime: Any) -> None:
        self.bundle = bundle
        self.runtime = runtime
        self.sample_rate_hz = bundle.sample_rate_hz
        self.windows_s = bundle.windows_s
        self._features = FEATURES[bundle.manifest["features"]["kind"]](bundle)
        self._decoder = open_decoder(bundle, runtime)
        self._detokenizer = self._decoder.read_table(bundle.load_detokenizer())
        spec = bundle.manifest["decoder"]
        self._language = written_language(spec.get("language"), spec.get("task"))

    def choose_window(self, n_samples: int) -> float:
        """The window (s) a clip of n_samples is given."""
        return choose_window(n_samples, self.windows_s, self.sample_rate_hz)

    def transcribe(self, audio: np.ndarray) -> Transcript:
        """Transcribe one clip, float (n_samples,) in [-1, 1] at the bundle's sample rate.

        Longer than the largest window: cut at quiet places, the texts joined as their language is written, the times
        added.
        """
        window_s = self.choose_window(len(audio))
        ranges = split_long(audio, window_s, self.sample_rate_hz)
        pieces = [self._transcribe_window([audio[start:end]], window_s)[0] for start, end in ranges]
        if len(pieces) == 1:
            return pieces[0]
        first = pieces[0]
        return Transcript(
            text=join_pieces([piece.text for piece in pieces], self._language),
            tokens=[token for piece in pieces for token in piece.tokens],
            window_s=window_s,
            n_pieces=len(pieces),
            n_incomplete=sum(piece.n_incomplete for piece in pieces),
            n_steps=sum(piece.n_steps for piece in pieces),
            phases_ms={phase: sum(piece.phases_ms[phase] for piece in pieces) for phase in first.phases_ms},
            first_token_ms=first.first_token_ms,
            total_ms=sum(piece.total_ms for piece in pieces),
            audio_s=len(audio) / self.sample_rate_hz,
        )

    def transcribe_batch(self, clips: Sequence[np.ndarray]) -> List[Transcript]:
        """Transcribe several clips; those of one window go through the model together. Order is kept."""
        by_window: Dict[float, List[int]] = {}
        transcripts: Dict[int, Transcript] = {}
        for i, audio in enumerate(clips):
            if len(audio) > window_samples(max(self.windows_s), self.sample_rate_hz):
                transcripts[i] = self.transcribe(audio)
            else:
                by_window.setdefault(self.choose_window(len(audio)), []).append(i)
        for window_s, members in sorted(by_window.items()):
            transcripts.update(zip(members, self._transcribe_window([clips[i] for i in members], window_s)))
        return [transcripts[i] for i in range(len(clips))]

    def _transcribe_window(self, clips: Sequence[np.ndarray], window_s: float) -> List[Transcript]:
        start_s = time.perf_counter()
        features = self._features(clips, window_s)
        features_ms = (time.perf_counter() - start_s) * 1e3
        result = self._decoder.decode(features, [len(audio) for audio in clips], window_s)
        texts = [self._detokenizer(tokens) for tokens in result.tokens]
        total_ms = (time.perf_counter() - start_s) * 1e3
        return [
            Transcript(
                text=text,
                tokens=tokens,
                window_s=window_s,
                n_pieces=1,
                n_incomplete=int(not complete),
                n_steps=result.n_steps,
                phases_ms=dict(features=features_ms, **result.phases_ms),
                first_token_ms=None if result.first_token_ms is None else features_ms + result.first_token_ms,
                total_ms=total_ms,
                audio_s=len(audio) / self.sample_rate_hz,
            )
            for text, tokens, complete, audio in zip(texts, result.tokens, result.is_complete, clips)
        ]
