"""Decoding with a cache that the runner keeps: graphs made for a CPU, whose steps copy nothing of the past."""

from typing import Any, Dict, Optional

import numpy as np

from .key_value import Encoded, KeyValueDecoder

BLOCK = 32
"""Positions by which the buffers of a cache grow."""

MASKED = -1e4
"""Added to the score of a position that is not to be read: exp() of it is 0."""


class BufferedDecoder(KeyValueDecoder):
    """KeyValueDecoder of graphs that take buffers and give what is new (kind "greedy-buffered").

    runtime: with `bind` as well as `run`.
    """

    def __init__(self, runtime: Any, manifest: Any) -> None:
        super().__init__(runtime, manifest)
        layers = range(manifest["model"]["n_layers"])
        self.new_names = [name.format(i) for i in layers for name in ("new_k_{}", "new_v_{}")]
        self.n_candidates: Optional[int] = manifest["decoder"].get("n_candidates")

    def start(self, encoded: Encoded) -> "BufferedState":
        """Begin to decode an encoded batch."""
        return BufferedState(self, encoded)


class BufferedState(object):
    """One batch being decoded: its keys and values are arrays here, in which each step writes one position.

    n_past: positions decoded so far. candidates: ids (batch, n) of the tokens whose logits the last step gave; None: of all.
    """

    def __init__(self, decoder: BufferedDecoder, encoded: Encoded) -> None:
        self._decoder, self._encoded, self.n_past = decoder, encoded, 0
        self.candidates: Optional[np.ndarray] = None
        # Keys and values of all layers, as past_names has them, side by side.
        shape = (len(decoder.past_names), encoded.batch, decoder._heads, BLOCK, decoder._head_dim)
        self._cache = np.zeros(shape, dtype=np.float32)
        self._step: Optional[_Bound] = None

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens int32 (batch, n_new), following those already given -> logits float32 (batch, n) of the last."""
        n_new = tokens.shape[1]
        while self.n_past + n_new > self._cache.shape[3]:
            self._cache = np.concatenate([self._cache, np.zeros_like(self._cache[:, :, :, :BLOCK])], axis=3)
            self._step = None
        # A step of one token runs again and again in the same place; a prompt comes once.
        if n_new > 1 or self._step is None:
            bound = _Bound(self._decoder, self._encoded, self._cache, n_new)
            self._step = bound if n_new == 1 else None
        else:
            bound = self._step
        self._cache[:, :, :, self.n_past : self.n_past + n_new] = bound.run(tokens, self.n_past)
        self.n_past += n_new
        self.candidates = bound.candidates
        return bound.logits.copy()


class _Bound(object):
    """The decoder's graph with all inputs and outputs in place, for steps of n_new tokens over one buffer."""

    def __init__(self, decoder: BufferedDecoder, encoded: Encoded, cache: np.ndarray, n_new: int) -> None:
        batch, n_buffer = encoded.batch, cache.shape[3]
        self._tokens = np.zeros((batch, n_new), dtype=np.int32)
        self._positions = np.zeros(n_new, dtype=np.int32)
        self._mask = np.full((n_new, n_buffer + n_new), MASKED, dtype=np.float32)
        self._mask[:, n_buffer:] = np.triu(np.full((n_new, n_new), MASKED, dtype=np.float32), 1)
        self._new = np.zeros(cache.shape[:3] + (n_new, cache.shape[4]), dtype=np.float32)
        self.candidates: Optional[np.ndarray] = None
        self.logits = np.zeros((batch, decoder.n_candidates or decoder._vocab_size), dtype=np.float32)
        inputs: Dict[str, Any] = {"tokens": self._tokens, "positions": self._positions, "mask": self._mask}
        inputs.update(zip(decoder.past_names, cache))
        inputs.update(encoded.tensors)
        outputs = dict(zip(decoder.new_names, self._new), logits=self.logits)
        if decoder.n_candidates:
            self.candidates = outputs["candidates"] = np.zeros(self.logits.shape, dtype=np.int32)
        self._run = decoder._runtime.bind("decoder", inputs, outputs)

    def run(self, tokens: np.ndarray, n_past: int) -> np.ndarray:
        """Keys and values of the tokens: float32 (layers and kinds, batch, n_heads, n_new, head_dim)."""
        self._tokens[...] = tokens
        self._positions[...] = np.arange(n_past, n_past + tokens.shape[1])
        self._mask[:, :n_past] = 0.0
        self._run()
        return self._new
