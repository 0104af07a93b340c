"""What is said in the demo: the command vocabulary, and the texts drawn from it for pre-training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

DIGITS: tuple[str, ...] = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip

HOME_COMMANDS: tuple[str, ...] = (
    "turn on the kitchen light",
    "turn off the kitchen light",
    "turn on the lamp",
    "turn off the lamp",
    "open the garage door",
    "close the garage door",
    "open the window",
    "close the blinds",
    "lock the front door",
    "unlock the front door",
    "set the heating to twenty degrees",
    "make it warmer",
    "make it colder",
    "play some music",
    "stop the music",
    "next song please",
    "volume up",
    "volume down",
    "what time is it",
    "set a timer for ten minutes",
    "start the coffee machine",
    "call my sister",
)

ROBOT_COMMANDS: tuple[str, ...] = (
    "go forward",
    "go back",
    "turn left",
    "turn right",
    "stop now",
    "come here",
    "follow me",
    "wait for me",
    "pick up the red box",
    "put down the blue box",
    "move the arm higher",
    "move the arm lower",
    "open the gripper",
    "close the gripper",
    "return to the charging station",
    "take a picture",
    "clean the floor",
    "speed up",
    "slow down",
    "emergency stop",
)

SENTENCES: tuple[str, ...] = (
    "the battery is low",
    "the door is open",
    "i am ready",
    "good morning robot",
    "thank you very much",
    "see you tomorrow",
    "yes please",
    "no thanks",
)

PHRASES: tuple[str, ...] = DIGITS + HOME_COMMANDS + ROBOT_COMMANDS + SENTENCES

COMMON_WORDS: tuple[str, ...] = (
    "about", "after", "again", "air", "all", "and", "animal", "answer", "apple", "ask", "baby", "bag",
    "ball", "bed", "before", "big", "bird", "black", "boat", "book", "boy", "bread", "bridge", "bring",
    "brother", "build", "but", "buy", "car", "cat", "chair", "change", "child", "city", "cloud", "cold",
    "cook", "country", "cup", "cut", "dark", "day", "deep", "dog", "draw", "dream", "drink", "drive",
    "dry", "early", "earth", "eat", "end", "every", "eye", "face", "fall", "family", "far", "farm", "fast",
    "father", "feet", "field", "find", "fire", "first", "fish", "flower", "fly", "food", "friend", "fruit",
    "garden", "girl", "give", "glass", "gold", "great", "green", "ground", "group", "grow", "hand", "hard",
    "have", "head", "hear", "heart", "help", "high", "hold", "home", "horse", "hot", "house", "hundred",
    "ice", "idea", "island", "job", "jump", "keep", "key", "kind", "king", "know", "land", "large", "late",
    "laugh", "learn", "letter", "life", "line", "listen", "little", "live", "long", "look", "love", "man",
    "map", "milk", "money", "month", "moon", "mother", "mountain", "mouth", "name", "near", "never", "new",
    "night", "north", "nothing", "number", "ocean", "often", "old", "paper", "people", "piece", "plant",
    "question", "quick", "quiet", "rain", "read", "ride", "ring", "river", "road", "rock", "room", "round",
    "run", "sand", "say", "school", "sea", "season", "ship", "shoe", "short", "show", "side", "silver",
    "simple", "sing", "sleep", "small", "smile", "snow", "soft", "sound", "south", "space", "spring",
    "star", "stone", "story", "street", "strong", "sugar", "summer", "sun", "swim", "table", "talk", "tall",
    "teacher", "ten", "think", "today", "together", "town", "train", "travel", "tree", "try", "under",
    "village", "voice", "walk", "wall", "warm", "watch", "water", "wave", "week", "west", "wheel", "white",
    "wild", "wind", "winter", "wood", "word", "work", "world", "write", "year", "yellow", "young",
)  # fmt: skip
"""Everyday words that no phrase needs: they keep pre-training from being a lesson in our phrases alone."""


class RandomSource(Protocol):
    """The two draws that `draw_text` needs from a numpy Generator."""

    def random(self) -> float: ...

    def integers(self, low: int, high: int) -> int: ...


def vocabulary() -> tuple[str, ...]:
    """Distinct words of all phrases, sorted."""
    return tuple(sorted({word for phrase in PHRASES for word in phrase.split()}))


def draw_text(rng: RandomSource, words: Sequence[str], phrase_share: float = 0.35, max_words: int = 5) -> str:
    """Text of one pre-training utterance: a phrase, or 1 to `max_words` random words in no order.

    Words in random order are what keeps the pre-trained decoder honest: it has to listen instead of
    completing the few phrases it knows.
    """
    if rng.random() < phrase_share:
        return PHRASES[int(rng.integers(0, len(PHRASES)))]
    n_words = int(rng.integers(1, max_words + 1))
    return " ".join(words[int(rng.integers(0, len(words)))] for _ in range(n_words))
