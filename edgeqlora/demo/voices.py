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

# Klatt synthesis, robots, croaks, whispers, and flite's people. Pre-training has heard none of them but awb and slt;
# whoever speaks in dev and test was never heard before. flite is in train only: it has four people, and a model adapted
# to three of them still gets half of the words of the fourth (rms) wrong.
TRAIN_VOICES: tuple[Voice, ...] = (
    flite("kal", "kal"),
    flite("kal16", "kal"),
    flite("awb", "awb"),
    flite("slt", "slt"),
    flite("rms", "rms"),
    *(espeak("en-us", variant) for variant in ("klatt", "klatt2", "klatt4", "croak", "whisper", "robosoft")),
    *(espeak("en-us", variant) for variant in ("robosoft2", "robosoft3", "robosoft7", "UniRobot", "iven", "iven4")),
    *(espeak("en-gb", variant) for variant in ("RicishayMax", "RicishayMax2", "grandma", "anika", "Tweaky")),
    *(espeak("en-gb", variant) for variant in ("steph2", "shelby", "kaukovalta", "gustave", "Storm")),
)
DEV_VOICES: tuple[Voice, ...] = (
    *(espeak("en-us", variant) for variant in ("klatt3", "robosoft4", "grandpa")),
    *(espeak("en-gb", variant) for variant in ("norbert", "iven2", "robert")),
)
TEST_VOICES: tuple[Voice, ...] = (
    *(espeak("en-us", variant) for variant in ("klatt5", "klatt6", "robosoft6", "robosoft8")),
    *(
        espeak("en-gb", variant)
        for variant in ("RicishayMax3", "sandro", "Nguyen", "edward2", "announcer", "AnxiousAndy")
    ),
)
