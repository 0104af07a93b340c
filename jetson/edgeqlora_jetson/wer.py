"""Word and character error rates, counted over a whole corpus, on text normalised by a named normaliser."""

import unicodedata
from typing import Any, Callable, Dict, Iterable, List, Sequence, Tuple

import numpy as np

_APOSTROPHES = "\u2018\u2019\u02bc\uff07"
_KEPT = ("L", "N", "M")  # letters, numbers and the marks that belong to letters in many scripts


def normalise_none(text: str) -> str:
    """Leave the text as it is."""
    return text


def normalise_basic(text: str) -> str:
    """NFKC, lower case, punctuation and symbols become spaces, white space collapsed; no words are rewritten.

    Apostrophes inside words stay ("don't"), curly ones become straight. Numbers are not spelled out.
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    kept = []
    for i, char in enumerate(text):
        if unicodedata.category(char)[0] in _KEPT and char not in _APOSTROPHES:
            kept.append(char)
        elif (char == "'" or char in _APOSTROPHES) and _is_letter(text[i - 1 : i]) and _is_letter(text[i + 1 : i + 2]):
            kept.append("'")
        else:
            kept.append(" ")
    return " ".join("".join(kept).split())


NORMALISERS: Dict[str, Callable[[str], str]] = {"none": normalise_none, "basic": normalise_basic}


def align_counts(reference_items: Sequence[Any], hypothesis_items: Sequence[Any]) -> Tuple[int, int, int, int]:
    """Count the edits of one best alignment: (substitutions, deletions, insertions, n_reference).

    Levenshtein distance. Among alignments of equal distance the one that a backward walk finds which prefers
    deletion, then insertion, then substitution (the choice of rapidfuzz, hence the counts of jiwer).
    Memory O(n_hypothesis): the insertions of the chosen path are carried along beside the distance.
    """
    n_reference = len(reference_items)
    start, reference_end, hypothesis_end = 0, n_reference, len(hypothesis_items)
    while start < min(reference_end, hypothesis_end) and reference_items[start] == hypothesis_items[start]:
        start += 1
    while (
        min(reference_end, hypothesis_end) > start
        and reference_items[reference_end - 1] == hypothesis_items[hypothesis_end - 1]
    ):
        reference_end -= 1
        hypothesis_end -= 1
    number_of: Dict[Any, int] = {}
    reference = [number_of.setdefault(item, len(number_of)) for item in reference_items[start:reference_end]]
    hypothesis = np.array(
        [number_of.setdefault(item, len(number_of)) for item in hypothesis_items[start:hypothesis_end]], dtype=np.int64
    )
    distance, insertions = _distance_and_insertions(reference, hypothesis)
    deletions = insertions + len(reference) - len(hypothesis)
    return distance - deletions - insertions, deletions, insertions, n_reference


def corpus_error_rate(pairs: Iterable[Tuple[str, str]], unit: str = "word") -> Dict[str, Any]:
    """Error rate over all (reference, hypothesis) pairs: all edits / all reference items, not a mean of rates.

    `unit` is "word" or "char" (single spaces count as characters). The rate is None when there are no
    reference items, and can exceed 1.0 when much is inserted.
    """
    if unit not in ("word", "char"):
        raise ValueError("unit={!r}, allowed: 'word', 'char'".format(unit))
    totals = np.zeros(4, dtype=np.int64)
    for reference, hypothesis in pairs:
        totals += align_counts(_items(reference, unit), _items(hypothesis, unit))
    substitutions, deletions, insertions, n_reference = (int(total) for total in totals)
    rate = (substitutions + deletions + insertions) / n_reference if n_reference else None
    return {
        "rate": rate,
        "substitutions": substitutions,
        "deletions": deletions,
        "insertions": insertions,
        "n_reference": n_reference,
    }


def _items(text: str, unit: str) -> List[str]:
    words = text.split()
    return words if unit == "word" else list(" ".join(words))


def _is_letter(char: str) -> bool:
    return bool(char) and unicodedata.category(char)[0] in _KEPT


def _distance_and_insertions(reference: List[int], hypothesis: np.ndarray) -> Tuple[int, int]:
    """Row by row over the reference; within a row the chain of insertions is a running minimum.

    distance[j], insertions[j]: of aligning the reference items so far with the first j hypothesis items.
    """
    columns = np.arange(len(hypothesis) + 1)
    distance, insertions = columns.copy(), columns.copy()
    for item in reference:
        previous, previous_insertions = distance, insertions
        no_insertion = previous + 1
        np.minimum(no_insertion[1:], previous[:-1] + (hypothesis != item), out=no_insertion[1:])
        distance = np.minimum.accumulate(no_insertion - columns) + columns
        is_deletion = distance == previous + 1
        is_insertion = np.zeros(len(columns), dtype=bool)
        # Insertion where the row's left neighbour is better than the diagonal one.
        is_insertion[1:] = ~is_deletion[1:] & (distance[:-1] == previous[:-1] - 1)
        carried = previous_insertions.copy()
        carried[1:] = np.where(is_deletion[1:], previous_insertions[1:], previous_insertions[:-1])
        source = np.maximum.accumulate(np.where(is_insertion, 0, columns))
        insertions = carried[source] + (columns - source)
    return int(distance[-1]), int(insertions[-1])
