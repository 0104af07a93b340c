"""Clips to text: window choice, log-mel, greedy decoding, detokenizing."""

import time
from typing import Any, Dict, List, NamedTuple, Sequence

import numpy as np

from .audio.load import LogMel, choose_window, split_long
from .audio.windows import window_samples
from .bundle import Bundle
from .decoders import Detokenizer, greedy


class Transcript(NamedTuple):
    """What one clip says, and what it took to find out.

    In a batch, all clips of it carry the times of the batch: none is ready before the others.
    """

    text: str
    tokens: List[int]  # without prompt and end token; of all pieces
    window_s: float  # audio seconds the encoder saw at a time
    n_pieces: int  # above 1: longer than the largest window, cut at quiet places
    n_incomplete: int  # pieces that ran into max_new_tokens
    n_steps: int  # decoder runs
    mel_ms: float
    encoder_ms: float
    decoder_ms: float
    first_token_ms: float  # from the call to the first token of the first piece
    total_ms: float  # from the call to the text
    audio_s: float


class Transcriber(object):
    """A bundle ready to transcribe in an opened runtime."""

    def __init__(self, bundle: Bundle, runtime: Any) -> None:
        audio = bundle.manifest["audio"]
        self.bundle = bundle
        self.runtime = runtime
        self.sample_rate_hz = bundle.sample_rate_hz
        self.windows_s = bundle.windows_s
        self._log_mel = LogMel(bundle.load_mel_filters(), audio["n_fft"], audio["hop_length"])
        self._detokenizer = Detokenizer(bundle.load_detokenizer())
        self._spec = bundle.manifest["decoding"]

    def choose_window(self, n_samples: int) -> float:
        """The window (s) a clip of n_samples is given."""
        return choose_window(n_samples, self.windows_s, self.sample_rate_hz)

    def transcribe(self, audio: np.ndarray) -> Transcript:
        """Transcribe one clip, float (n_samples,) in [-1, 1] at the bundle's sample rate.

        Longer than the largest window: cut at quiet places, the texts joined by a space, the times added.
        """
        window_s = self.choose_window(len(audio))
        ranges = split_long(audio, window_s, self.sample_rate_hz)
        pieces = [self._transcribe_window([audio[start:end]], window_s)[0] for start, end in ranges]
        if len(pieces) == 1:
            return pieces[0]
        first = pieces[0]
        return Transcript(
            text=" ".join(piece.text for piece in pieces if piece.text),
            tokens=[token for piece in pieces for token in piece.tokens],
            window_s=window_s,
            n_pieces=len(pieces),
            n_incomplete=sum(piece.n_incomplete for piece in pieces),
            n_steps=sum(piece.n_steps for piece in pieces),
            mel_ms=sum(piece.mel_ms for piece in pieces),
            encoder_ms=sum(piece.encoder_ms for piece in pieces),
            decoder_ms=sum(piece.decoder_ms for piece in pieces),
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
        n_frames = window_samples(window_s, self.sample_rate_hz) // self._log_mel.hop_length
        mel = np.stack([self._log_mel(audio, n_frames) for audio in clips])
        mel_ms = (time.perf_counter() - start_s) * 1e3
        result = greedy(self.runtime, mel, self._spec, self.bundle.max_new_tokens(window_s))
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
                mel_ms=mel_ms,
                encoder_ms=result.encoder_ms,
                decoder_ms=result.decoder_ms,
                first_token_ms=mel_ms + result.first_token_ms,
                total_ms=total_ms,
                audio_s=len(audio) / self.sample_rate_hz,
            )
            for text, tokens, complete, audio in zip(texts, result.tokens, result.is_complete, clips)
        ]
