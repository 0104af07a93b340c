"""The seam between model families: what the rest of the workstation may ask of a model, whichever family it is of.

The family is chosen once, from config.json's `model_type`: `edgeqlora/models/<model_type>/` holds it, with a
`load_processor` and a `load_learner`. Callers hold the objects and never ask which family they are of.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from edgeqlora.card import read_card
from edgeqlora.data.label_rules import LabelRules
from edgeqlora.errors import UserError
from edgeqlora.hub_access import is_hub_name, stay_offline_without_network
from edgeqlora.models.parts import check_files, verify_weights
from edgeqlora_jetson.transcribe import Segment

Features = npt.NDArray[np.float32]


class Transcription(NamedTuple):
    """What a decoder makes of one clip."""

    text: str
    segments: tuple[Segment, ...] | None = None
    """None: this decoder gives no times."""
    state: Any = None
    """Of a stream: what the call for its next audio is given. None: the clip was whole."""
    is_complete: bool = True
    """False: it repeated itself, or stopped at the limit of tokens, and its end is missing."""
    heard: Any = None
    """What the model made of the audio before the text: for Decoder.losses, which need not hear it again."""


class CachedDecoder(NamedTuple):
    """A decoder that keeps keys and values of the text before, as transformers' cache."""

    module: Any
    """torch module that takes input_ids, position_ids and the cache."""
    cache_name: str
    """Its argument for the cache."""
    n_layers: int
    n_heads: int
    width: int


class Processor(Protocol):
    """What belongs to a model beside its weights: tokenizer, features, labels. Loads no torch model."""

    source: str
    """Folder or hub name it was loaded from."""
    tokenizer: Any
    """transformers' tokenizer."""
    sample_rate_hz: int
    native_window_s: float
    """Longest window that the model takes, in s."""
    spelling: dict[str, str] | None
    """Table of British to American spellings that the score `whisper-english` uses, where the folder has one."""
    n_prompt_ids: int
    """Ids that stand in front of the text in the model's labels."""
    end_ids: list[int]
    """Ids that end every label."""

    @property
    def settings(self) -> str:
        """Everything that changes the features, as text for a cache key."""

    def feature_shape(self, window_s: float) -> tuple[int, ...]:
        """Shape of the features of one clip in a window. UserError for a window that the model cannot take."""

    def n_valid_frames(self, n_samples: int, window_s: float) -> int:
        """Length along the last axis of the features that holds the clip; the rest is padding."""

    def features(self, audio: Features, window_s: float) -> Features:
        """Features of audio float32 (n_samples,), padded or cut to the window: float32 `feature_shape(window_s)`."""

    def label_rules(self, language: str | None = None) -> LabelRules:
        """What transcripts are held against: tokens, their limit, and what the model can write."""

    def text_ids(self, text: str) -> list[int]:
        """Ids of a transcript as the model writes it, without prompt and end: never those of control tokens."""

    def unwritable(self, text: str) -> set[str]:
        """Characters of a transcript that the model has no way to write."""

    def fits(self, ids: Sequence[int], duration_s: float) -> bool:
        """Whether a clip of this duration can give these ids at all."""

    def save(self, folder: Path) -> None:
        """Write tokenizer and feature extractor in transformers' format."""


class Learner(Protocol):
    """A model with its weights: what training, adapters and scoring ask of it."""

    model: Any
    """transformers model, possibly wrapped by PEFT."""
    processor: Processor
    unquantised: tuple[str, ...]
    """Names of modules that a quantised base leaves as they are."""
    roles: ClassVar[dict[str, str]]
    """What a linear in a block is, by the last part of its name: query, key, value or output of attention, inner or outer
    of feed-forward."""

    def blocks(self) -> dict[str, list[str]]:
        """Full names of the repeated blocks by group, such as encoder, cross, decoder; inner ones after outer ones.

        Adapters go on every linear inside them; a linear belongs to the group of the innermost block around it.
        """

    def cached_decoder(self) -> CachedDecoder | None:
        """The decoder that a prefix of keys and values can stand in front of; None: this model has none."""

    def layer_stacks(self) -> dict[str, Any]:
        """Lists of equal layers by name, from which some may be taken out: torch ModuleLists."""

    def keep_layers(self, stack: str, numbers: Sequence[int]) -> None:
        """Leave only these layers of a stack, numbered anew, in model and configuration."""

    on_rows: Callable[[Any], None] | None
    """Told the indices of the rows that go on, whenever a decoder drops rows of its batch."""

    def attention(self, layer: Any) -> tuple[Callable[[Any], Any], list[Any]]:
        """Of an encoder layer: what its input goes through before the attention, and its query, key and value linears."""

    def hears_frames(self, linear: str) -> bool:
        """Whether the rows of this linear's input are positions of the encoder, one after the other in time."""

    def frame_parts(self) -> tuple[Any, Any]:
        """The module that hears the batch's features first, and one that makes of these frame features.

        The latter: float32 (batch, n_positions, 4), exactly 0 where there is only padding (see edgeqlora_export/gates.py).
        """

    def counted(self, linear: str, n_valid: int, labels: Any) -> Any:
        """Index of the rows of a linear's input that belong to the clip and not to padding, in a batch of one.

        n_valid: as Processor.n_valid_frames gives it. labels: of the batch; their padding is not counted either.
        """

    def allow_empty_texts(self) -> None:
        """Let decoding end before the first word: for a model that was trained on clips in which nobody speaks."""

    def freeze_fixed(self) -> None:
        """Switch the gradient of parameters off that are constants of the architecture."""

    def inputs(self, features: Features, n_valid: Sequence[int]) -> dict[str, Any]:
        """Inputs of one forward pass over features float32 (batch, *feature_shape), with any text where one is needed."""

    def window(self, inputs: dict[str, Any]) -> AbstractContextManager[Any]:
        """Inside the `with`, the model takes inputs of this length."""

    def loss(self, outputs: Any, inputs: dict[str, Any], labels: Any) -> Any:
        """Cross-entropy in nats, summed over the labels that count: a scalar tensor."""

    def decoder(
        self, windows_s: Sequence[float], language: str | None, task: str | None, tokens_per_s: float | None = None
    ) -> Decoder:
        """Greedy decoding with this model. UserError for a language or task that it cannot be asked for.

        tokens_per_s: most label tokens in a second of the training data, from which a limit may follow.
        """


class Decoder(Protocol):
    """Greedy decoding by the rules that the board follows."""

    language: str | None
    rules: dict[str, Any]
    """Plain values for a report."""

    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    """Samples {"features", "n_valid", "target_ids"} to the model's inputs and `labels` (-100: not counted).

    It holds no weights: data loader processes get a copy.
    """

    def transcribe(
        self, features: Features, n_valid: Sequence[int], window_s: float, states: Sequence[Any] | None = None
    ) -> list[Transcription]:
        """Texts of a batch: features float32 (batch, *feature_shape); n_valid: of each clip.

        states: of each stream, what the call before gave; None: whole clips. UserError where a decoder has no streams.
        """

    def losses(self, found: Sequence[Transcription], target_ids: Sequence[list[int]]) -> list[float]:
        """Cross-entropy in nats of each clip that `transcribe` was given, summed over its ids: text and end_ids.

        found: all that one call of `transcribe` gave.
        """


def families() -> list[str]:
    """Names of the families that are here, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg)


def check_source(source: str, is_base: bool = True) -> None:
    """Raise before anything heavy if `source` is a folder that holds no model of a known family, or a damaged file.

    A name on the hub passes: its config is read when it is loaded. is_base: adapters are to be put on it, so that it may
    not have gates in time itself.
    """
    folder = Path(source)
    if not folder.exists():
        if is_hub_name(source):
            stay_offline_without_network()
            return
        raise UserError(
            f"no model at {source!r}: give a transformers folder, or a hub name such as openai/whisper-tiny"
        )
    config = folder / "config.json"
    if not config.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "a file"
        raise UserError(f"{source} is not a transformers model folder: no config.json in it (found: {found})")
    check_files(folder)
    if is_base and any(folder.glob("temporal_gate.*")):
        raise UserError(
            f"{source} holds adapters with gates in time beside its weights (merge --keep-gates): it can be evaluated and "
            "exported; to tune it further, merge without --keep-gates"
        )
    from edgeqlora_jetson.files import read_json

    content = read_json(config, "config.json")
    _verify_family(source, content.get("model_type") if isinstance(content, dict) else None)


def load_processor(source: str) -> Processor:
    """Tokenizer, features and labels of a model folder or hub name, without loading weights."""
    processor: Processor = _package(source).load_processor(source)
    return processor


def load_learner(
    source: str, quantise: bool = False, dtype: str = "float32", device: str = "cpu", bits: int = 4
) -> Learner:
    """Load a model in `dtype`; with `quantise`, its linears in 4 bits (NF4, double quantisation) or 8 (int8).

    Gates in time that a folder of `merge --keep-gates` holds are in it. Raises UserError for weights that are damaged,
    or not those that the folder's card recorded.
    """
    if (folder := Path(source)).is_dir() and (card := read_card(folder)) is not None:
        verify_weights(folder, card)
    learner: Learner = _package(source).load_learner(source, quantise, dtype, device, bits)
    if folder.is_dir() and not quantise:
        from edgeqlora_export.gates import attach_gates

        attach_gates(learner.model, folder, *learner.frame_parts())
    return learner


def first_line(error: BaseException) -> str:
    """First line of an error's text: libraries add pages of advice."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def refuse_streams(states: Sequence[Any] | None) -> None:
    """For decoders that take whole clips: raise UserError where a stream is to go on."""
    if states is not None:
        raise UserError("states are of streams, and this model's decoder takes whole clips: give states=None")


def cannot_load(source: str, what: str, error: BaseException) -> UserError:
    """The error to raise where a library could not read `what` of a model."""
    if not Path(source).exists() and os.environ.get("HF_HUB_OFFLINE") == "1":
        return UserError(
            f"{source} is neither a folder here nor in the hub's cache, and the hub cannot be reached: "
            "give a folder, or run this once with a network"
        )
    return UserError(f"{source}: {what} cannot be loaded: {first_line(error)}")


def _package(source: str) -> ModuleType:
    check_source(source, is_base=False)
    from transformers import AutoConfig

    from edgeqlora.quiet import hush_transformers

    hush_transformers()
    try:
        model_type = AutoConfig.from_pretrained(source).model_type
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(source, "config.json", error) from error
    _verify_family(source, model_type)
    return importlib.import_module(f"edgeqlora.models.{model_type}")


def _verify_family(source: str, model_type: Any) -> None:
    if model_type not in families():
        raise UserError(f"{source} holds a {model_type!r} model, allowed is model_type {' or '.join(families())}")
