"""The search for a precision: all that can be is int8, unless that costs words; then the parts that cost most stay in fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx

from edgeqlora_export.precision.judge import Clip, Heard, choices, cost, divergence, hear, nothing_heard
from edgeqlora_export.precision.listen import hear_with_states
from edgeqlora_export.precision.mixes import VOCABULARY, Vocabulary, bytes_of, parts_of, write_mix
from edgeqlora_export.precision.vocabulary import choose_lead, find_vocabulary, second_moment, turn
from edgeqlora_jetson.audio.windows import window_samples
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.errors import NotFiniteError, UserError
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.schema import Precision, TriedMix
from edgeqlora_jetson.transcribe import Transcriber

N_SENSITIVITY = 8
"""Clips on which each part alone is measured."""
N_BEST = 192
"""Tokens whose logits a decoder of int8 vocabulary gives, at least; more where more are suppressed."""


class Search:
    """One search: bundle with fp32 graphs and a folder that can be written."""

    def __init__(
        self,
        bundle: Bundle,
        graphs: Mapping[str, Path],
        clips: Sequence[Clip],
        allowed: float,
        threads: int,
        progress: Callable[[str], None],
    ) -> None:
        self.bundle, self.graphs, self.clips, self.allowed = bundle, graphs, clips, allowed
        self.threads, self.progress = threads, progress
        self.parts = parts_of(graphs)
        self.vocabulary: Vocabulary | None = None
        self.rows: list[TriedMix] = []
        self.sensitivity: dict[str, float | None] = {}
        self._plain: Heard | None = None

    def run(self, only_int8: bool) -> tuple[Bundle, Precision]:
        """The bundle of the mix that is chosen, whose graphs lie beside the fp32 ones, and the manifest's `precision`.

        only_int8: raise UserError, with the reason, where not everything can be int8.
        """
        self.progress(f"fp32: {len(self.clips)} clips")
        if f"decoder/{VOCABULARY}" in self.parts:
            self._plain, states = hear_with_states(self.bundle, self.clips, self.threads)
            self._turn_vocabulary(states)
        else:
            self._plain = hear(self._transcriber(self.bundle), self.clips)
        self._add(self.bundle, [], self._plain)
        chosen, row = self._try(self.parts)
        if row["refused"] and only_int8:
            raise UserError(
                f"precision int8 was asked for, and {row['refused']} ({len(self.clips)} clips): pass --precision auto, which keeps "
                "in fp32 what costs most, or a higher --max-wer-increase"
            )
        if row["refused"]:
            self._measure_parts()
            chosen, row = self._fall_back()
        record: Precision = {
            "int8": row["int8"],
            "fp32": [part for part in self.parts if part not in row["int8"]],
            "max_increase": self.allowed,
            "n_clips": len(self.clips),
            "n_words": int(self._plain.words.sum()),
            "tried": self.rows,
        }
        if self.vocabulary is not None:
            record["vocabulary"] = {"n_lead": self.vocabulary.n_lead, "n_candidates": self.vocabulary.n_best}
        if self.sensitivity:
            record["sensitivity"] = self.sensitivity
        return chosen, record

    def _transcriber(self, bundle: Bundle) -> Transcriber:
        return Transcriber(bundle, open_runtime(bundle, "onnxruntime", threads=self.threads))

    def _try(self, int8: Sequence[str]) -> tuple[Bundle, TriedMix]:
        bundle = write_mix(self.bundle, self.graphs, int8, self.vocabulary, f"mix{len(self.rows)}")
        try:
            heard = hear(self._transcriber(bundle), self.clips)
        except NotFiniteError:
            assert self._plain is not None
            heard = nothing_heard(self._plain)
        return bundle, self._add(bundle, int8, heard)

    def _add(self, bundle: Bundle, int8: Sequence[str], heard: Heard) -> TriedMix:
        assert self._plain is not None
        costs = cost(self._plain, heard, self.allowed)
        row = cast(TriedMix, {"int8": list(int8), "bytes": bytes_of(bundle), **costs})
        self.rows.append(row)
        if int8:
            self.progress(
                f"{len(int8)} of {len(self.parts)} parts in int8: error rate {row['wer']:.2f} % ({row['increase']:+.2f} points, 95 % "
                f"interval {row['low']:+.2f} to {row['high']:+.2f}), {row['bytes'] / 1e6:.1f} MB, {row['ms_per_clip']:.0f} ms a clip"
                f"{'; refused: ' + row['refused'] if row['refused'] else ''}"
            )
        return row

    def _turn_vocabulary(self, states: np.ndarray) -> None:
        model = onnx.load(str(self.graphs["decoder"]))
        gemm = next(node for node in model.graph.node if node.name == find_vocabulary(model))
        weight = next(onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name == gemm.input[1])
        decoder = self.bundle.manifest["decoder"]
        hidden = len(set(decoder["suppress_ids"]) | set(decoder["begin_suppress_ids"]))
        n_best = min(len(weight), max(N_BEST, 2 * hidden))
        n_lead = choose_lead(weight, states, n_best)
        if n_lead >= weight.shape[1]:
            self.progress(
                f"the vocabulary stays in fp32: no part of its {weight.shape[1]} columns tells likely tokens from others"
            )
            self.parts.remove(f"decoder/{VOCABULARY}")
            return
        self.vocabulary = Vocabulary(turn(weight, second_moment(states)), n_lead, n_best)

    def _measure_parts(self) -> None:
        """How far the choices are from fp32's with each part alone in int8."""
        plain = self._transcriber(self.bundle)
        longest = window_samples(max(self.bundle.windows_s), self.bundle.sample_rate_hz)
        audios = [audio[:longest] for audio, _ in self.clips[:N_SENSITIVITY]]
        texts = [plain.transcribe(audio).tokens for audio in audios]
        wanted = choices(plain, audios, texts)
        for i, part in enumerate(self.parts):
            self.progress(f"measuring part {i + 1} of {len(self.parts)} alone in int8: {part}")
            bundle = write_mix(self.bundle, self.graphs, [part], self.vocabulary, "part")
            far = divergence(wanted, choices(self._transcriber(bundle), audios, texts))
            self.sensitivity[part] = round(far, 6) if np.isfinite(far) else None

    def _fall_back(self) -> tuple[Bundle, TriedMix]:
        """The mix with the fewest parts in fp32, the most sensitive first, that is allowed; else fp32."""
        far = self.sensitivity
        worst = sorted(self.parts, key=lambda part: -np.inf if (one := far[part]) is None else -one)
        n_bad, n_good = 0, len(worst)
        found: tuple[Bundle, TriedMix] = self.bundle, self.rows[0]
        while n_good - n_bad > 1:
            n = (n_bad + n_good) // 2
            kept = set(worst[:n])
            tried = self._try([part for part in self.parts if part not in kept])
            if tried[1]["refused"]:
                n_bad = n
            else:
                n_good, found = n, tried
        return found


def front(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Which rows, of those not refused, no other is better than in error rate, bytes and time at once."""

    def beats(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
        pairs = [(a[key], b[key]) for key in ("wer", "bytes", "ms_per_clip")]
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    allowed = [row for row in rows if not row["refused"]]
    return [i for i, row in enumerate(rows) if not row["refused"] and not any(beats(other, row) for other in allowed)]
