"""Int8 for a CPU as the search tries it (see search.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeqlora_export.precision.cpu.listen import hear_with_states
from edgeqlora_export.precision.cpu.mixes import VOCABULARY, Vocabulary, bytes_of, parts_of, write_mix
from edgeqlora_export.precision.cpu.vocabulary import choose_lead, find_vocabulary, second_moment, turn
from edgeqlora_export.precision.judge import Clip, Heard, hear
from edgeqlora_jetson.bundle import Bundle
from edgeqlora_jetson.runtimes import open_runtime
from edgeqlora_jetson.transcribe import Transcriber

N_BEST = 192
"""Tokens whose logits a decoder of int8 vocabulary gives, at least; more where more are suppressed."""


class CpuForm:
    """Linear layers and the vocabulary in int8, the rest in fp32."""

    low, rest, is_timed = "int8", "fp32", True

    def __init__(
        self, bundle: Bundle, graphs: Mapping[str, Path], threads: int, progress: Callable[[str], None]
    ) -> None:
        self.bundle, self.graphs, self.threads, self.progress = bundle, graphs, threads, progress
        self.parts = parts_of(graphs)
        self.vocabulary: Vocabulary | None = None

    @property
    def all_parts(self) -> list[str]:
        return self.parts

    def hear_plain(self, clips: Sequence[Clip]) -> Heard:
        if f"decoder/{VOCABULARY}" not in self.parts:
            return hear(Transcriber(self.bundle, open_runtime(self.bundle, "onnxruntime", threads=self.threads)), clips)
        heard, states = hear_with_states(self.bundle, clips, self.threads)
        self._turn_vocabulary(states)
        return heard

    def write(self, low: Sequence[str], ending: str) -> Bundle:
        return write_mix(self.bundle, self.graphs, low, self.vocabulary, ending)

    def bytes_of(self, low: Sequence[str], written: Bundle) -> int:
        return bytes_of(written)

    def names(self, low: Sequence[str]) -> dict[str, list[str]]:
        return {"int8": list(low)}

    def ship(self, low: Sequence[str]) -> Bundle:
        return self.write(low, "mix")

    def record(self) -> dict[str, Any]:
        found = self.vocabulary
        return {} if found is None else {"vocabulary": {"n_lead": found.n_lead, "n_candidates": found.n_best}}

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
