"""Whisper without its weights: tokenizer, log-mel of any window, labels."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeqlora.data.audio import SAMPLE_RATE_HZ
from edgeqlora.data.label_rules import LabelRules
from edgeqlora.data.text import scripts_of_language
from edgeqlora.errors import UserError
from edgeqlora.models.family import Features, cannot_load
from edgeqlora_export.whisper.checks import check_parts, load_generation
from edgeqlora_export.whisper.detokenizer import control_tokens
from edgeqlora_export.whisper.languages import is_multilingual, language_code
from edgeqlora_jetson.files import write_json
from edgeqlora_jetson.text import UNSPACED, first_script

SPELLING = "normalizer.json"
"""British to American spellings, which belong to the tokenizer."""

POSITIONS_PER_S = 50
"""Encoder positions a second: 100 log-mel frames, halved by the second convolution."""


class WhisperProcessor:
    """Processor (see models/family.py) of a Whisper model.

    The log-mel is computed by the model's own extractor, so that it is exactly what the model was trained on; only the
    length to which audio is padded or cut changes. Raises UserError for parts that do not belong together (check_parts).
    """

    def __init__(self, source: str, tokenizer: Any, feature_extractor: Any, config: Any, generation: Any):
        check_parts(source, tokenizer, feature_extractor, config, generation)
        self.generation = generation
        """Decoding settings: transformers' GenerationConfig."""
        self.source, self.tokenizer, self.feature_extractor = source, tokenizer, feature_extractor
        self.sample_rate_hz = SAMPLE_RATE_HZ
        self.hop_length = int(feature_extractor.hop_length)
        self.n_mels = int(feature_extractor.feature_size)
        self.native_window_s = config.max_source_positions / POSITIONS_PER_S
        self.spelling = getattr(tokenizer, "english_spelling_normalizer", None)
        self.is_multilingual = is_multilingual(config, generation, tokenizer)
        self.n_prompt_ids = 4 if self.is_multilingual else 2
        """Start of transcript, (language, task,) no timestamps."""
        self.end_ids = [int(tokenizer.eos_token_id)]
        self._suppressed = frozenset(i for i in getattr(generation, "suppress_tokens", None) or () if i >= 0)
        self._max_labels = int(config.max_target_positions)

    @property
    def settings(self) -> str:
        fields = ("feature_size", "sampling_rate", "hop_length", "n_fft", "dither", "padding_value", "do_normalize")
        values: dict[str, Any] = {field: getattr(self.feature_extractor, field, None) for field in fields}
        values["class"] = type(self.feature_extractor).__name__
        return json.dumps(values, sort_keys=True)

    def n_frames(self, window_s: float) -> int:
        """Frames in a window: 100 per second. UserError unless that is an even whole number.

        The encoder's second convolution halves the frames, hence even.
        """
        frames = window_s * self.sample_rate_hz / self.hop_length
        whole = round(frames)
        if whole < 2 or whole % 2 or abs(frames - whole) > 1e-6:
            frame_s = self.hop_length / self.sample_rate_hz
            near = max(2, 2 * math.ceil(frames / 2)) * frame_s
            raise UserError(
                f"window_s={window_s:g} must be a multiple of {2 * frame_s:g} s, at least one: try {near:g}"
            )
        return whole

    def feature_shape(self, window_s: float) -> tuple[int, ...]:
        return self.n_mels, self.n_frames(window_s)

    def n_valid_frames(self, n_samples: int, window_s: float) -> int:
        return min(self.n_frames(window_s), math.ceil(n_samples / self.hop_length))

    def features(self, audio: Features, window_s: float) -> Features:
        n_frames = self.n_frames(window_s)
        with _one_thread():
            features = self.feature_extractor(
                audio,
                sampling_rate=self.sample_rate_hz,
                padding="max_length",
                max_length=n_frames * self.hop_length,
                truncation=True,
                return_tensors="np",
            )
        mel = np.ascontiguousarray(features["input_features"][0], dtype=np.float32)
        assert mel.shape == (self.n_mels, n_frames), f"extractor gave {mel.shape}"
        return mel

    def label_rules(self, language: str | None = None) -> LabelRules:
        """`language` is what a multilingual model will be told is spoken."""
        spoken = language_code(language) if language and self.is_multilingual else None
        expected = {"LATIN"} if not self.is_multilingual else scripts_of_language(spoken) if spoken else None
        return LabelRules(
            tokenise=self.text_ids,
            max_text_tokens=self._max_labels - (self.n_prompt_ids - 1) - len(self.end_ids),
            suppressed_ids=self._suppressed,
            expected_scripts=None if expected is None else frozenset(expected),
            language_code=language_code,
            only_language=None if self.is_multilingual else "en",
        )

    def text_ids(self, text: str) -> list[int]:
        """Subword ids of a transcript as Whisper writes it: with a space in front, where the script has spaces.

        Whisper's own transcripts begin so (" The"): the other spelling would make every first word another token than
        the one the base model knows. An empty text has no ids. Texts are stripped again after decoding.
        Letters are composed (NFC), as in Whisper's own data. A text that is written as a control token is, such as
        <|endoftext|>, is a text: the ids of its letters.
        """
        text = unicodedata.normalize("NFC", text).strip()
        spaced = text if not text or first_script(text) in UNSPACED else f" {text}"
        # The tokenizer would make one id of it, and split_special_tokens knows only those marked as special.
        cuts = [0, *(found.start() + 1 for found in self._control.finditer(spaced)), len(spaced)]
        parts = [spaced[start:end] for start, end in itertools.pairwise(cuts)]
        return [token for part in parts for token in self.tokenizer(part, add_special_tokens=False)["input_ids"]]

    @functools.cached_property
    def _control(self) -> re.Pattern[str]:
        """Finds what the tokenizer would take for a control token."""
        tokens = sorted((token for token in control_tokens(self.tokenizer) if len(token) > 1), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, tokens)) or "(?!)")

    def unwritable(self, text: str) -> set[str]:
        return set()  # its tokens cover every byte

    def fits(self, ids: Sequence[int], duration_s: float) -> bool:
        return True  # attention aligns any number of tokens with any length

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        if self.spelling:  # transformers reads this table, and does not write it
            write_json(folder / SPELLING, self.spelling)
        self.feature_extractor.save_pretrained(folder)


def load_processor(source: str) -> WhisperProcessor:
    """Processor of a Whisper folder or hub name. Raises UserError where a part of it cannot be read."""
    from transformers import AutoConfig, WhisperFeatureExtractor, WhisperTokenizer

    try:
        tokenizer = WhisperTokenizer.from_pretrained(source)
        extractor = WhisperFeatureExtractor.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise cannot_load(source, "tokenizer or feature extractor", error) from error
    try:
        config = AutoConfig.from_pretrained(source)
        generation = load_generation(source, config)
    except (OSError, ValueError) as error:
        raise cannot_load(source, "config.json or generation_config.json", error) from error
    return WhisperProcessor(source, tokenizer, extractor, config, generation)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep torch to one thread for a clip's log-mel.

    The work is too small to share: on a 2-core machine that is also busy elsewhere, a 2 s clip takes 4.5 ms
    with two threads, which wait for each other, and 0.8 ms with one.
    """
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
