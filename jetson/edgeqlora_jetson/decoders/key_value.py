"""Greedy decoding of an encoder-decoder with a cache of keys and values."""

import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from ..schema import Manifest
from .decoded import Decoded, verify_finite
from .loops import LOOP_TOKENS, loop_start, said_before
from .texts import Detokenizer


class Encoded(NamedTuple):
    """A batch whose encoder has run: keys and values of the cross-attention, kept by the runtime."""

    tensors: Dict[str, Any]
    batch: int


class KeyValueDecoder(object):
    """Greedy decoding of an encoder-decoder with a key/value cache: graphs "encoder" and "decoder".

    runtime: anything with `run` (see runtimes). manifest: a bundle's, of which "model" and "decoder" are read.
    """

    def __init__(self, runtime: Any, manifest: Manifest) -> None:
        model = manifest["model"]
        layers = range(model["n_layers"])
        self._runtime, self._spec = runtime, manifest["decoder"]
        self._heads, self._head_dim, self._vocab_size = model["n_heads"], model["head_dim"], model["vocab_size"]
        self.cross_names = [name.format(i) for i in layers for name in ("cross_k_{}", "cross_v_{}")]
        self.past_names = [name.format(i) for i in layers for name in ("past_k_{}", "past_v_{}")]
        self.present_names = [name.format(i) for i in layers for name in ("present_k_{}", "present_v_{}")]

    def encode(self, mel: np.ndarray) -> Encoded:
        """Mel float32 (batch, n_mels, n_frames) -> keys and values of all decoder layers, on the runtime's device."""
        tensors = self._runtime.run("encoder", {"mel": mel}, self._cross_shapes(mel), self.cross_names)
        return Encoded(tensors, mel.shape[0])

    def read_cross(self, mel: np.ndarray) -> Dict[str, np.ndarray]:
        """The same as arrays, for a comparison with another implementation."""
        return self._runtime.run("encoder", {"mel": mel}, self._cross_shapes(mel))

    def _cross_shapes(self, mel: np.ndarray) -> Dict[str, Tuple[int, ...]]:
        batch, _, n_frames = mel.shape
        heads, head_dim, n_audio = self._heads, self._head_dim, n_frames // 2
        return {
            name: (batch, heads, head_dim, n_audio) if "_k_" in name else (batch, heads, n_audio, head_dim)
            for name in self.cross_names
        }

    def start(self, encoded: Encoded) -> Any:
        """Begin to decode an encoded batch."""
        return DecoderState(self, encoded)

    def _flags(self, ids: Sequence[int]) -> np.ndarray:
        """Bool (vocab,): which of all tokens these are."""
        flags = np.zeros(self._vocab_size, dtype=bool)
        flags[np.array(ids, dtype=np.intp)] = True
        return flags

    def decode(self, features: np.ndarray, n_samples: Sequence[int], window_s: float) -> Decoded:
        """Decode a batch of log-mels, float32 (batch, n_mels, n_frames), of clips of n_samples in a window."""
        tokens = {float(window): n for window, n in self._spec["max_new_tokens"].items()}
        return self.greedy(features, tokens[float(window_s)])

    def read_table(self, table: Sequence[Optional[str]]) -> Detokenizer:
        """The function from tokens to text that belongs to a table of the bundle."""
        return Detokenizer(table)

    def warm_up(self, features: np.ndarray) -> None:
        """One run of each graph as decoding does it: the prompt, one step."""
        state = self.start(self.encode(features))
        state.step(np.array([self._spec["prompt_ids"]] * len(features), dtype=np.int32))
        state.step(np.array([[self._spec["eos_ids"][0]]] * len(features), dtype=np.int32))

    def greedy(self, mel: np.ndarray, max_new_tokens: int) -> Decoded:
        """Decode a batch of log-mels by the most likely token each step.

        suppress_ids of the manifest are never generated, begin_suppress_ids not first. max_new_tokens counts the end
        token. Each of eos_ids ends a row, and so does a loop, of which one round is kept (see loop_start); of a row that
        reaches the limit the end goes that says again what was said (see said_before). Rows that are finished go on with
        the first of eos_ids.
        Raises NotFiniteError when the first logits, or later that of a chosen token, are not finite.
        """
        if max_new_tokens < 1:
            raise ValueError("max_new_tokens={}, at least 1".format(max_new_tokens))
        start_s, spec = time.perf_counter(), self._spec
        state = self.start(self.encode(mel))
        encoded_s = time.perf_counter()
        first_s: Optional[float] = None
        batch, eos_ids = mel.shape[0], spec["eos_ids"]
        suppress, begin_suppress = self._flags(spec["suppress_ids"]), self._flags(spec["begin_suppress_ids"])
        is_end = self._flags(eos_ids)
        tokens = np.tile(np.array(spec["prompt_ids"], dtype=np.int32), (batch, 1))
        generated = np.full((batch, max_new_tokens), eos_ids[0], dtype=np.int32)
        finished, rows = np.zeros(batch, dtype=bool), np.arange(batch)
        kept: Dict[int, int] = {}  # row whose end goes -> tokens that stay
        n_steps = 0
        while n_steps < max_new_tokens and not finished.all():
            logits, ids = state.step(tokens), state.candidates
            if n_steps == 0:
                verify_finite(logits, "decoder", self._runtime)
                _hide(logits, ids, begin_suppress)
            _hide(logits, ids, suppress)
            place = rows, logits.argmax(axis=1)
            verify_finite(logits[place], "decoder", self._runtime)  # argmax takes a NaN for the largest
            best = (place[1] if ids is None else ids[place]).astype(np.int32)
            best[finished] = eos_ids[0]
            if first_s is None:
                first_s = time.perf_counter()
            generated[:, n_steps] = best
            finished |= is_end[best]
            tokens = best[:, np.newaxis]
            n_steps += 1
            for row in np.flatnonzero(~finished).tolist() if n_steps >= LOOP_TOKENS else ():
                start = loop_start(generated[row, :n_steps].tolist())
                if start is not None:
                    kept[row], finished[row] = start, True
        for row in np.flatnonzero(~finished).tolist():
            kept[row] = said_before(generated[row].tolist())
        end_s = time.perf_counter()
        return Decoded(
            tokens=[
                row[: kept[i]] if i in kept else _until_end(row, eos_ids)
                for i, row in enumerate(generated[:, :n_steps].tolist())
            ],
            is_complete=[i not in kept for i in range(batch)],
            phases_ms={"encoder": (encoded_s - start_s) * 1e3, "decoder": (end_s - encoded_s) * 1e3},
            n_steps=n_steps,
            first_token_ms=((first_s or end_s) - start_s) * 1e3,
        )


class DecoderState(object):
    """One batch being decoded: its keys and values stay in the runtime's memory.

    n_past: positions decoded so far. candidates: ids (batch, n) of the tokens whose logits the last step gave; None: of all.
    """

    candidates: Optional[np.ndarray] = None

    def __init__(self, decoder: KeyValueDecoder, encoded: Encoded) -> None:
        self._decoder, self._encoded, self.n_past = decoder, encoded, 0
        empty = np.zeros((encoded.batch, decoder._heads, 0, decoder._head_dim), dtype=np.float32)
        self._past = dict.fromkeys(decoder.past_names, empty)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens int32 (batch, n_new), following those already given -> logits float32 (batch, vocab) of the last."""
        decoder, batch = self._decoder, self._encoded.batch
        n_total = self.n_past + tokens.shape[1]
        present = (batch, decoder._heads, n_total, decoder._head_dim)
        shapes: Dict[str, Tuple[int, ...]] = dict.fromkeys(decoder.present_names, present)
        shapes["logits"] = (batch, decoder._vocab_size)
        inputs: Dict[str, Any] = {"tokens": np.ascontiguousarray(tokens, dtype=np.int32)}
        inputs.update(self._past)
        inputs.update(self._encoded.tensors)
        outputs = decoder._runtime.run("decoder", inputs, shapes, decoder.present_names)
        self._past = {past: outputs[now] for past, now in zip(decoder.past_names, decoder.present_names)}
        self.n_past = n_total
        return outputs["logits"]


def _hide(logits: np.ndarray, ids: Optional[np.ndarray], flags: np.ndarray) -> None:
    """Take tokens, flagged in (vocab,), out of the choice; ids (batch, n) are those of the logits, None: all."""
    if ids is None:
        logits[:, flags] = -np.inf
    else:
        logits[flags[ids]] = -np.inf


def _until_end(tokens: List[int], eos_ids: Sequence[int]) -> List[int]:
    ends = [i for i, token in enumerate(tokens) if token in eos_ids]
    return tokens[: ends[0]] if ends else tokens
