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

from edgeqlora.data.label_rules import LabelRules
from edgeqlora.models.family import Features, cannot_load
from edgeqlora_export.wav2vec2.checks import LONGEST_WINDOW_S, check_window, read_vocabulary
from edgeqlora_jetson.audio.features import VARIANCE_FLOOR, n_outputs, normalise
from edgeqlora_jetson.audio.windows import SAMPLE_RATE_HZ


class Wav2Vec2Processor:
    """Processor (see models/family.py) of a Wav2Vec 2.0 CTC model.

    Each clip is normalised alone, then padded with zeros to the window. Whether the model is told which samples are
    padding follows the extractor's `return_attention_mask`, as the model was trained.
    Raises UserError for parts that do not belong together (see read_vocabulary).
    """

    spelling = None
    native_window_s = LONGEST_WINDOW_S
    n_prompt_ids = 0

    def __init__(self, source: str, tokenizer: Any, feature_extractor: Any, config: Any):
        self.source, self.tokenizer, self.feature_extractor = source, tokenizer, feature_extractor
        self.vocabulary = read_vocabulary(source, tokenizer, feature_extractor, config)
        self.sample_rate_hz = SAMPLE_RATE_HZ
        self.end_ids: list[int] = []
        self.uses_mask = bool(feature_extractor.return_attention_mask)
        self.normalises = bool(feature_extractor.do_normalize)
        self._kernels, self._strides = config.conv_kernel, config.conv_stride
        letters = [token for token in self.vocabulary.ids if len(token) == 1 and token.isalpha()]
        self._has_upper = any(c != c.lower() for c in letters)
        self._has_lower = any(c != c.upper() for c in letters)
        own = (t for t in self.vocabulary.ids if len(t) == 1 and unicodedata.normalize("NFC", t) != t)
        self._never_composed = {unicodedata.normalize("NFC", token): token for token in own}

    @property
    def settings(self) -> str:
        return json.dumps(["audio", self.sample_rate_hz, self.normalises, VARIANCE_FLOOR])

    def feature_shape(self, window_s: float) -> tuple[int, ...]:
        check_window(window_s)
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
        return LabelRules(tokenise=self.text_ids, unwritable=self.unwritable, fits=self.fits)

    def text_ids(self, text: str) -> list[int]:
        """Ids of the characters: case as the vocabulary has it, words apart by the delimiter.

        Punctuation that the vocabulary lacks stands between words, as scoring takes it; any other character it lacks
        becomes the unknown token.
        """
        spaced = self.vocabulary.delimiter.join(self._spell(text).split())
        unknown = self.vocabulary.blank_id if self.vocabulary.unknown_id is None else self.vocabulary.unknown_id
        return [self.vocabulary.ids.get(character, unknown) for character in spaced]

    def unwritable(self, text: str) -> set[str]:
        return {c for c in self._spell(text) if not c.isspace() and c not in self.vocabulary.ids}

    def fits(self, ids: Sequence[int], duration_s: float) -> bool:
        """One step of output for each character, and a blank between two that are alike."""
        repeats = sum(a == b for a, b in itertools.pairwise(ids))
        is_written = not {self.vocabulary.blank_id, self.vocabulary.unknown_id} & set(ids)
        return is_written and len(ids) + repeats <= self.n_outputs(math.floor(duration_s * self.sample_rate_hz))

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)
        self.feature_extractor.save_pretrained(folder)

    def _spell(self, text: str) -> str:
        """The text in characters of the vocabulary as far as they go, words apart by white space.

        Letters with accents are composed (NFC), or decomposed where only that is in the vocabulary.
        """
        ids = self.vocabulary.ids
        text = unicodedata.normalize("NFC", text)
        if "\N{RIGHT SINGLE QUOTATION MARK}" not in ids:
            text = text.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
        if self._has_upper != self._has_lower:
            # Turkish: the small letter of a dotted capital I is an i, not an i with a second dot.
            text = text.upper() if self._has_upper else text.replace("İ", "i").lower()
        if "'" not in ids:
            text = text.replace("'", "")  # inside a word: don't is one word
        for composed, token in self._never_composed.items():
            if not set(composed) <= set(ids):
                text = text.replace(composed, token)
        text = "".join(c if c in ids else self._decomposed(c) for c in text)
        # Signs that are spoken, such as + and the euro's, are no punctuation: the model has no way to write them.
        return "".join(c if c in ids or unicodedata.category(c)[0] != "P" else " " for c in text).replace(
            self.vocabulary.delimiter, " "
        )

    def _decomposed(self, character: str) -> str:
        """A letter as the vocabulary writes it that has its accents as tokens of their own; else as it is."""
        parts = unicodedata.normalize("NFD", character)
        return parts if all(part in self.vocabulary.ids for part in parts) else character


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
