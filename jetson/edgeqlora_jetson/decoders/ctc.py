"""Greedy decoding of CTC models."""

import time
from typing import Any, List, Optional, Sequence

import numpy as np

from ..audio.features import n_outputs
from ..schema import Manifest
from .decoded import Decoded, verify_finite
from .texts import Characters


class CtcDecoder(object):
    """Greedy decoding of a CTC model: graph "ctc", whose steps are read by the likeliest id of each."""

    def __init__(self, runtime: Any, manifest: Manifest) -> None:
        self._runtime, self._spec = runtime, manifest["decoder"]
        self._vocab_size = manifest["model"]["vocab_size"]

    def logits(self, features: np.ndarray, n_samples: Sequence[int]) -> np.ndarray:
        """Normalised samples float32 (batch, n_window) of clips of n_samples -> float32 (batch, n_steps, vocab)."""
        batch, n_steps = len(features), self.n_steps(features.shape[1])
        inputs = {"audio": features}
        if self._spec["uses_mask"]:
            mask = np.zeros((batch, n_steps), dtype=np.float32)
            for row, n in zip(mask, n_samples):
                row[: self.n_steps(n)] = 1.0
            inputs["frame_mask"] = mask
        return self._runtime.run("ctc", inputs, {"logits": (batch, n_steps, self._vocab_size)})["logits"]

    def n_steps(self, n_samples: int) -> int:
        """Steps of output that this many samples give."""
        return n_outputs(n_samples, self._spec["conv_kernel"], self._spec["conv_stride"])

    def decode(self, features: np.ndarray, n_samples: Sequence[int], window_s: float) -> Decoded:
        """Decode a batch; without a mask (uses_mask) the steps over the padding are read too, as in training."""
        start_s = time.perf_counter()
        logits = self.logits(features, n_samples)
        verify_finite(logits, "ctc", self._runtime)
        encoded_s = time.perf_counter()
        steps = [self.n_steps(n) if self._spec["uses_mask"] else logits.shape[1] for n in n_samples]
        ids = logits.argmax(axis=2)
        tokens = [collapse(row[:n].tolist(), self._spec["blank_id"]) for row, n in zip(ids, steps)]
        end_s = time.perf_counter()
        return Decoded(
            tokens=tokens,
            is_complete=[True] * len(tokens),
            phases_ms={"ctc": (encoded_s - start_s) * 1e3, "collapse": (end_s - encoded_s) * 1e3},
        )

    def read_table(self, table: Sequence[Optional[str]]) -> Characters:
        """The function from tokens to text that belongs to a table of the bundle."""
        return Characters(table, self._spec["word_delimiter"])

    def warm_up(self, features: np.ndarray) -> None:
        """One run of the graph."""
        self.logits(features, [features.shape[1]] * len(features))


def collapse(ids: Sequence[int], blank_id: int) -> List[int]:
    """CTC's reading of one id a step: runs of the same id count once, blanks not at all (Graves et al. 2006)."""
    return [now for before, now in zip([blank_id] + list(ids[:-1]), ids) if now != before and now != blank_id]
