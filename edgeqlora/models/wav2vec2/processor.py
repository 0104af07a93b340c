"""Wav2Vec 2.0 without its weights: normalised audio of any window, characters as labels."""

from __future__ import annotations

import itertools
import json
import math
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeqlora.data.audio import SAMPLE_RATE_HZ
from edgeqlora.data.label_rules import LabelRules
from edgeqlora.errors import UserError
from edgeqlora.models.family import Features, cannot_load
from edgeqlora_jetson.audio.features import VARIANCE_FLOOR, n_outputs, normalise

LONGEST_WINDOW_S = 30.0
"""The model has no limit of its own, but attention over all pairs of frames costs the square of the window."""

WINDOW_STEP_S = 0.02


class Wav2Vec2Processor:
    """Processor (see models/family.py) of a Wav2Vec 2.0 CTC model.

    Each clip is normalised alone, then padded with zeros to the window. Whether the model is told which samples are
    padding follows the extractor's `return_attention_mask`, as the model was trained.
    Raises UserError for another rate than 16 kHz, and for a vocabulary without blank or word delimiter.
    """

    spelling = None
    native_window_s = LONGEST_WINDOW_S
    n_prompt_ids = 0

    def __init__(self, source: str, tokenizer: Any, feature_extractor: Any, config: Any):
        self.source, self.tokenizer, self.feature_extractor = source, tokenizer, feature_extractor
        self.sample_rate_hz = int(feature_extractor.sampling_rate)
        if self.sample_rate_hz != SAMPLE_RATE_HZ:
            raise UserError(
                f"{source}: the feature extractor works at {self.sample_rate_hz} Hz, allowed is {SAMPLE_RATE_HZ} Hz: "
                "choose another model"
            )
        self.vocabulary: dict[str, int] = dict(tokenizer.get_vocab())
        self.delimiter = tokenizer.word_delimiter_token
        if tokenizer.pad_token_id is None or self.delimiter not in self.vocabulary:
            raise UserError(
                f"{source}: the tokenizer needs a padding token (the blank of CTC) and its word delimiter "
                f"{self.delimiter!r} in vocab.json: use the tokenizer that came with the model"
            )
        self.blank_id = int(tokenizer.pad_token_id)
        self.unknown_id = tokenizer.unk_token_id
        self.end_ids: list[int] = []
        self.uses_mask = bool(feature_extractor.return_attention_mask)
        self.normalises = bool(feature_extractor.do_normalize)
        self._kernels, self._strides = config.conv_kernel, config.conv_stride
        letters = [token for token in self.vocabulary if len(token) == 1 and token.isalpha()]
        self._has_upper = any(c != c.lower() for c in letters)
        self._has_lower = any(c != c.upper() for c in letters)

    @property
    def settings(self) -> str:
        return json.dumps(["audio", self.sample_rate_hz, self.normalises, VARIANCE_FLOOR])

    def feature_shape(self, window_s: float) -> tuple[int, ...]:
        n_steps = window_s / WINDOW_STEP_S
        if not WINDOW_STEP_S <= window_s <= LONGEST_WINDOW_S + 1e-9 or abs(n_steps - round(n_steps)) > 1e-6:
            raise UserError(
                f"window_s={window_s:g}: allowed are multiples of {WINDOW_STEP_S} s up to {LONGEST_WINDOW_S:g} s"
            )
        return (round(window_s * self.sample_rate_hz),)

    def n_valid_frames(self, n_samples: int, window_s: float) -> int:
        return min(n_samples, self.feature_shape(window_s)[0])

    def features(self, audio: Features, window_s: float) -> Features:
        (length,) = self.feature_shape(window_s)
        padded = np.zeros(length, np.float32)
        clip = audio[:length]
        padded[: clip.size] = normalise(clip) if self.normalises and clip.size else clip
        return padded

    def n_outputs(self, n_samples: int) -> int:
        """Steps of output for this many samples."""
        return n_outputs(n_samples, self._kernels, self._strides)

    def label_rules(self, language: str | None = None) -> LabelRules:
        return LabelRules(tokenise=self.text_ids, unwritable=self.unwritable)

    def text_ids(self, text: str) -> list[int]:
        """Ids of the characters: case as the vocabulary has it, words apart by the delimiter.

        Punctuation that the vocabulary lacks is left out; any other character it lacks becomes the unknown token.
        """
        spaced = self.delimiter.join(self._spell(text).split())
        unknown = self.blank_id if self.unknown_id is None else int(self.unknown_id)
        return [self.vocabulary.get(character, unknown) for character in spaced]

    def characters(self) -> list[str | None]:
        """What each id stands for, None for the special ones: the table that decoding reads, here and on a board."""
        table: list[str | None] = [None] * (max(self.vocabulary.values()) + 1)
        # The tokenizer counts its word delimiter among the special tokens.
        special = set(self.tokenizer.all_special_tokens) - {self.delimiter}
        for token, number in self.vocabulary.items():
            table[number] = None if token in special else token
        return table

    def unwritable(self, text: str) -> set[str]:
        return {c for c in self._spell(text) if not c.isspace() and c not in self.vocabulary}

    def fits(self, ids: Sequence[int], duration_s: float) -> bool:
        """One step of output for each character, and a blank between two that are alike."""
        repeats = sum(a == b for a, b in itertools.pairwise(ids))
        known = self.unknown_id is None or self.unknown_id not in ids
        return known and len(ids) + repeats <= self.n_outputs(math.floor(duration_s * self.sample_rate_hz))

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.feature_extractor.save_pretrained(folder)

    def _spell(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        if self._has_upper != self._has_lower:
            text = text.upper() if self._has_upper else text.lower()
        return "".join(
            c for c in text if c in self.vocabulary or c.isspace() or unicodedata.category(c)[0] not in "PS"
        ).replace(self.delimiter, " ")


def load_processor(source: str) -> Wav2Vec2Processor:
    """Processor of a Wav2Vec 2.0 folder or hub name. Raises UserError where a part of it cannot be read."""
    from transformers import AutoConfig, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    try:
        tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(source)
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(source)
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError, TypeError) as error:
        raise cannot_load(source, "tokenizer, feature extractor or config.json", error) from error
    return Wav2Vec2Processor(source, tokenizer, extractor, config)
