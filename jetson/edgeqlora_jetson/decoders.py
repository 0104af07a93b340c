"""Decoding loops over a runtime's named tensors, each written once for every runtime, and ids to text."""

import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np

from .audio.features import n_outputs
from .errors import NotFiniteError, UserError
from .schema import Manifest

LOOP_ROUNDS, LOOP_TOKENS = 6, 32
"""A text that ends in this many rounds of the same tokens, and this many tokens of such rounds, repeats itself: a command of
four tokens said eight times, a word of one said 32 times. Since one round is kept, more patience costs time, not words."""


class Decoded(NamedTuple):
    """Tokens of a batch of clips, and what the decoding took."""

    tokens: List[List[int]]  # per clip, without prompt and end token
    is_complete: List[bool]  # per clip: the end token came, before max_new_tokens and before any loop
    phases_ms: Dict[str, float]  # one after the other, such as encoder, decoder (prefill and all steps)
    n_steps: int = 0  # decoder runs, prefill included; 0: this decoder has no steps
    first_token_ms: Optional[float] = None  # from the call to the first token; None: all tokens come at once


class Encoded(NamedTuple):
    """A batch whose encoder has run: keys and values of the cross-attention, kept by the runtime."""

    tensors: Dict[str, Any]
    batch: int


class Detokenizer(object):
    """Token ids to text.

    table: index = token id, value = the token's bytes as a latin-1 string, None for special tokens (skipped).
    """

    def __init__(self, table: Sequence[Optional[str]]) -> None:
        self._table = table

    def __call__(self, tokens: Sequence[int]) -> str:
        """Text of the tokens, stripped; bytes that are not UTF-8 become the replacement character."""
        pieces = []
        for token in tokens:
            if not 0 <= token < len(self._table):
                raise UserError(
                    "token {} is outside the detokenizer table, allowed 0 to {}: the table does not fit "
                    "the model, export the bundle again".format(token, len(self._table) - 1)
                )
            piece = self._table[token]
            if piece is not None:
                pieces.append(piece.encode("latin-1"))
        return b"".join(pieces).decode("utf-8", errors="replace").strip()


class Characters(object):
    """Ids of a CTC model to text. table: index = id, value = the character, None for special tokens (skipped)."""

    def __init__(self, table: Sequence[Optional[str]], delimiter: str) -> None:
        self._table, self._delimiter = table, delimiter

    def __call__(self, tokens: Sequence[int]) -> str:
        """Text of the ids, words apart by one space."""
        return spell(tokens, self._table, self._delimiter)


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

    def start(self, encoded: Encoded) -> "DecoderState":
        """Begin to decode an encoded batch."""
        return DecoderState(self, encoded)

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
        suppress = np.array(spec["suppress_ids"], dtype=np.intp)
        begin_suppress = np.array(spec["begin_suppress_ids"], dtype=np.intp)
        tokens = np.tile(np.array(spec["prompt_ids"], dtype=np.int32), (batch, 1))
        generated = np.full((batch, max_new_tokens), eos_ids[0], dtype=np.int32)
        finished = np.zeros(batch, dtype=bool)
        kept: Dict[int, int] = {}  # row whose end goes -> tokens that stay
        n_steps = 0
        while n_steps < max_new_tokens and not finished.all():
            logits = state.step(tokens)
            if n_steps == 0:
                verify_finite(logits, "decoder", self._runtime)
                logits[:, begin_suppress] = -np.inf
            logits[:, suppress] = -np.inf
            best = logits.argmax(axis=1).astype(np.int32)
            verify_finite(
                logits[np.arange(batch), best], "decoder", self._runtime
            )  # argmax takes a NaN for the largest
            best[finished] = eos_ids[0]
            if first_s is None:
                first_s = time.perf_counter()
            generated[:, n_steps] = best
            finished |= np.isin(best, eos_ids)
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

    n_past: positions decoded so far.
    """

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


def verify_finite(logits: np.ndarray, graph: str, runtime: Any) -> None:
    """Raise NotFiniteError where a graph answers NaN or infinity: seen of transformers in fp16 (NVIDIA/TensorRT#1500)."""
    if not np.isfinite(logits).all():
        raise NotFiniteError(
            "the {} {} in {} {} answers NaN or infinity on this audio: run it in fp32 (TensorRT: build --precision fp32, "
            "then --precision fp32), and if it is fp32 already, train or export again".format(
                getattr(runtime, "precision", "fp32"), graph, runtime.name, runtime.version
            )
        )


DECODERS: Dict[str, Any] = {"greedy": KeyValueDecoder, "ctc": CtcDecoder}


def open_decoder(bundle: Any, runtime: Any) -> Any:
    """The decoding loop that the bundle's decoder.kind names."""
    return DECODERS[bundle.manifest["decoder"]["kind"]](runtime, bundle.manifest)


def collapse(ids: Sequence[int], blank_id: int) -> List[int]:
    """CTC's reading of one id a step: runs of the same id count once, blanks not at all (Graves et al. 2006)."""
    return [now for before, now in zip([blank_id] + list(ids[:-1]), ids) if now != before and now != blank_id]


def spell(ids: Sequence[int], characters: Sequence[Optional[str]], delimiter: str) -> str:
    """Text of character ids: None in the table is skipped, the delimiter stands between words."""
    pieces = [characters[number] or "" for number in ids]
    return " ".join("".join(" " if piece == delimiter else piece for piece in pieces).split())


def loop_start(tokens: Sequence[int]) -> Optional[int]:
    """Where the second round of a loop begins that these tokens end in, or None where they end in none.

    Whisper on noise, or on a window that it was not trained in, says the same words until it reaches its limit.
    """
    n = len(tokens)
    for period in range(1, n // LOOP_ROUNDS + 1):
        if tokens[n - 1] != tokens[n - 1 - period]:
            continue
        start = n - period * (max(LOOP_ROUNDS, -(-LOOP_TOKENS // period)) - 1)
        if start >= period and tokens[start:] == tokens[start - period : n - period]:
            return start
    return None


def said_before(tokens: Sequence[int]) -> int:
    """Of tokens that reached the limit: how many come before four of five runs of three are repeats, to the end.

    Far more tokens than anybody speaks in a window: what repeats in them, if not to the letter, was not said.
    """
    runs = [tuple(tokens[i : i + 3]) for i in range(len(tokens) - 2)]
    known: Set[Tuple[int, ...]] = set()
    is_new: List[bool] = []
    for run in runs:
        is_new.append(run not in known)
        known.add(run)
    kept, n_new = len(tokens), 0
    for i in range(len(runs) - 1, -1, -1):
        n_new += is_new[i]
        if not is_new[i] and 5 * n_new <= len(runs) - i:
            kept = i
    return kept


def _until_end(tokens: List[int], eos_ids: Sequence[int]) -> List[int]:
    ends = [i for i, token in enumerate(tokens) if token in eos_ids]
    return tokens[: ends[0]] if ends else tokens
