"""Who speaks: synthetic voices, and which of them pre-training, train, dev and test may use."""

from __future__ import annotations

from typing import NamedTuple


class Voice(NamedTuple):
    """One synthetic voice.

    engine: "espeak-ng" or "flite".
    name: the engine's voice, such as "en-us+m3" (accent + variant) or "slt".
    speaker: who is heard; voices of one speaker never stand in two splits.
    """

    engine: str
    name: str
    speaker: str


def espeak(accent: str, variant: str) -> Voice:
    """An espeak-ng voice; the variant decides the speaker, the accent only the phonemes."""
    return Voice("espeak-ng", f"{accent}+{variant}", f"espeak-{variant}")


def flite(name: str, speaker: str) -> Voice:
    """A flite voice, recorded from a person (kal and kal16 are one person)."""
    return Voice("flite", name, f"flite-{speaker}")


ACCENTS: tuple[str, ...] = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbcwmd")

PRETRAIN_VARIANTS: tuple[str, ...] = (
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5",
    "adam", "Alex", "Alicia", "Andrea", "Andy", "Annie", "antonio", "aunty", "belinda", "benjamin", "boris",
    "caleb", "david", "Denis", "Diogo", "ed", "edward", "Gene", "Gene2", "Henrique", "Hugo",
    "Jacky", "john", "Lee", "linda", "marcelo", "Marco", "Mario", "max", "Michael", "michel", "miguel",
    "mike",
)  # fmt: skip
"""Named variants of espeak-ng's own formant synthesis: what the base model learns from, without noise."""

HELDOUT_VARIANTS: tuple[str, ...] = ("pablo", "paul", "pedro", "quincy", "rob", "steph", "travis", "victor")
"""Same kind of voice, never trained on: what pre-training is scored with."""

PRETRAIN_VOICES = tuple(espeak(accent, variant) for variant in PRETRAIN_VARIANTS for accent in ACCENTS)
# Two recorded people, each in about one clip of fifteen, so that natural speech is not quite foreign to the model.
PRETRAIN_VOICES += (flite("awb", "awb"), flite("slt", "slt")) * 20
HELDOUT_VOICES = tuple(espeak(accent, variant) for variant in HELDOUT_VARIANTS for accent in ACCENTS[:2])

# Klatt synthesis, robots, croaks and whispers, and flite's other people: none is in pre-training.
TRAIN_VOICES: tuple[Voice, ...] = (
    flite("kal", "kal"),
    flite("kal16", "kal"),
    espeak("en-us", "klatt"),
    espeak("en-gb", "klatt2"),
    espeak("en-us", "klatt4"),
    espeak("en-us", "croak"),
    espeak("en-us", "whisper"),
    espeak("en-gb", "robosoft"),
    espeak("en-us", "robosoft3"),
    espeak("en-us", "UniRobot"),
    espeak("en-gb", "RicishayMax"),
    espeak("en-us", "iven"),
    espeak("en-us", "grandma"),
    espeak("en-us", "anika"),
    espeak("en-us", "Tweaky"),
)
DEV_VOICES: tuple[Voice, ...] = (
    espeak("en-us", "klatt3"),
    espeak("en-gb", "robosoft5"),
    espeak("en-us", "grandpa"),
    espeak("en-us", "norbert"),
    espeak("en-us", "whisperf"),
)
TEST_VOICES: tuple[Voice, ...] = (
    flite("rms", "rms"),
    espeak("en-us", "klatt5"),
    espeak("en-us", "klatt6"),
    espeak("en-us", "robosoft7"),
    espeak("en-gb", "iven3"),
    espeak("en-us", "shelby"),
    espeak("en-us", "kaukovalta"),
    espeak("en-us", "sandro"),
)
