"""Clips to text: window choice, features, decoding, detokenizing."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .audio.features import FEATURES
from .audio.windows import choose_window, heard_seconds, split_long, window_samples
from .bundle import Bundle
from .decoders import Decoded, open_decoder
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
    window_s: float  # the window that the clip, or each piece of it, was given
    n_pieces: int  # above 1: longer than the largest window, cut at quiet places
    n_incomplete: int  # pieces that repeated themselves or ran into max_new_tokens
    n_steps: int  # decoder runs; 0: the decoder has none
    phases_ms: Dict[str, float]  # features, then the decoder's own, one after the other; of all pieces
    first_token_ms: Optional[float]  # from the call to the first token of the first piece; None: all come at once
    total_ms: float  # from the call to the text
    audio_s: float
    heard_s: float = (
        0.0  # audio seconds that the encoder heard, of all pieces; less than their windows: it followed the clip
    )
    n_again: int = 0  # pieces without an end that were heard once more, in the whole window
    segments: Optional[List[Segment]] = None  # None: this decoder gives no times


class Transcriber(object):
    """A bundle ready to transcribe in an opened runtime.

    streams: clips of a batch that are transcribed at one time where graphs take them one by one (int8 graphs for a CPU), each in a
    thread of its own.
    """

    def __init__(self, bundle: Bundle, runtime: Any, streams: int = 1) -> None:
        self.bundle = bundle
        self.runtime = runtime
        self.streams = streams
        self.sample_rate_hz = bundle.sample_rate_hz
        self.windows_s = bundle.windows_s
        self._features = FEATURES[bundle.manifest["features"]["kind"]](bundle)
        self._decoder = open_decoder(bundle, runtime)
        self._detokenizer = self._decoder.read_table(bundle.load_detokenizer())
        spec = bundle.manifest["decoder"]
        margin = bundle.manifest["audio"].get("margin") or {}
        self._margin_s, self._least_s = margin.get("margin_s"), margin.get("least_s", 0.0)
        if not runtime.takes_any_length:
            self._margin_s = None
        self._one_by_one = bundle.is_int8
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
            heard_s=sum(piece.heard_s for piece in pieces),
            n_again=sum(piece.n_again for piece in pieces),
        )

    def transcribe_batch(self, clips: Sequence[np.ndarray]) -> List[Transcript]:
        """Transcribe several clips; those that are heard for one time go through the model together. Order is kept.

        Int8 graphs take them one by one, in streams: they share one scale in a batch, and a text would depend on its neighbours.
        """
        if self._one_by_one:
            return self._transcribe_streams(clips)
        by_length: Dict[Tuple[float, float], List[int]] = {}
        transcripts: Dict[int, Transcript] = {}
        for i, audio in enumerate(clips):
            if len(audio) > window_samples(max(self.windows_s), self.sample_rate_hz):
                transcripts[i] = self.transcribe(audio)
            else:
                window_s = self.choose_window(len(audio))
                by_length.setdefault((window_s, self.heard_s(len(audio), window_s)), []).append(i)
        for (window_s, _), members in sorted(by_length.items()):
            transcripts.update(zip(members, self._transcribe_window([clips[i] for i in members], window_s)))
        return [transcripts[i] for i in range(len(clips))]

    def _transcribe_streams(self, clips: Sequence[np.ndarray]) -> List[Transcript]:
        """Clips one by one, as many at a time as there are streams. Each carries the time of all, its phases by their shares of it."""
        if len(clips) < 2:
            return [self.transcribe(audio) for audio in clips]
        start_s = time.perf_counter()
        longest_first = sorted(range(len(clips)), key=lambda i: -len(clips[i]))
        with ThreadPoolExecutor(self.streams) as pool:
            found = dict(zip(longest_first, pool.map(self.transcribe, [clips[i] for i in longest_first])))
        total_ms = (time.perf_counter() - start_s) * 1e3
        share = total_ms / sum(one.total_ms for one in found.values())
        phases_ms = {phase: share * sum(one.phases_ms[phase] for one in found.values()) for phase in found[0].phases_ms}
        return [
            found[i]._replace(
                total_ms=total_ms, phases_ms=dict(phases_ms), n_steps=sum(f.n_steps for f in found.values())
            )
            for i in range(len(clips))
        ]

    def heard_s(self, n_samples: int, window_s: float) -> float:
        """Seconds of its window that the encoder hears of a clip: the same alone and in any batch, as is then its text."""
        if self._margin_s is None:
            return window_s
        return heard_seconds(n_samples, window_s, self._margin_s, self._least_s, self.sample_rate_hz)

    def _transcribe_window(self, clips: Sequence[np.ndarray], window_s: float) -> List[Transcript]:
        """Clips of one window that are heard for one time."""
        start_s, heard_s = time.perf_counter(), self.heard_s(len(clips[0]), window_s)
        result = self._decode(clips, window_s, heard_s, start_s)
        heard, complete = [heard_s] * len(clips), list(result.is_complete)
        # A text without an end may be for want of silence after the clip: then the whole window is heard.
        again = [i for i, is_complete in enumerate(complete) if not is_complete] if heard_s < window_s else []
        if again:
            again_s = time.perf_counter()
            second = self._decode([clips[i] for i in again], window_s, window_s, again_s)
            for i, tokens, is_complete in zip(again, second.tokens, second.is_complete):
                result.tokens[i], complete[i], heard[i] = tokens, is_complete, heard_s + window_s
            for phase, ms in second.phases_ms.items():
                result.phases_ms[phase] += ms
            first_ms = None if second.first_token_ms is None else (again_s - start_s) * 1e3 + second.first_token_ms
            result = result._replace(n_steps=result.n_steps + second.n_steps, first_token_ms=first_ms)
        texts = [self._detokenizer(tokens) for tokens in result.tokens]
        total_ms = (time.perf_counter() - start_s) * 1e3
        return [
            Transcript(
                text=text,
                tokens=result.tokens[i],
                window_s=window_s,
                n_pieces=1,
                n_incomplete=int(not complete[i]),
                n_steps=result.n_steps,
                phases_ms=dict(result.phases_ms),
                first_token_ms=result.first_token_ms,
                total_ms=total_ms,
                audio_s=len(clips[i]) / self.sample_rate_hz,
                heard_s=heard[i],
                n_again=int(i in again),
            )
            for i, text in enumerate(texts)
        ]

    def _decode(self, clips: Sequence[np.ndarray], window_s: float, heard_s: float, start_s: float) -> Decoded:
        """Clips of one window, of which the encoder hears heard_s; times are from start_s on, features among them."""
        features = self._features(clips, heard_s)
        features_ms = (time.perf_counter() - start_s) * 1e3
        result = self._decoder.decode(features, [len(audio) for audio in clips], window_s)
        first_ms = None if result.first_token_ms is None else features_ms + result.first_token_ms
        return result._replace(phases_ms=dict(features=features_ms, **result.phases_ms), first_token_ms=first_ms)
