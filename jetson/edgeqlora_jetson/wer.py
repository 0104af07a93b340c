"""Word and character error rates, counted over a whole corpus of normalised texts (see text.py)."""

from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from .figures import figure
from .schema import Figure

COUNTED = {"word": "words", "char": "characters", "letter": "characters without spaces"}
"""Units of counting, as reports name them."""


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

    `unit` is "word", "char" (single spaces count as characters) or "letter" (spaces do not count: for languages that
    put none between words). The rate is None when there are no reference items, and can exceed 1.0 when much is inserted.
    """
    if unit not in COUNTED:
        raise ValueError("unit={!r}, allowed: {}".format(unit, ", ".join(map(repr, COUNTED))))
    totals = np.zeros(4, dtype=np.int64)
    for reference, hypothesis in pairs:
        totals += align_counts(items(reference, unit), items(hypothesis, unit))
    substitutions, deletions, insertions, n_reference = (int(total) for total in totals)
    rate = (substitutions + deletions + insertions) / n_reference if n_reference else None
    return {
        "rate": rate,
        "substitutions": substitutions,
        "deletions": deletions,
        "insertions": insertions,
        "n_reference": n_reference,
    }


def error_figures(
    pairs: Sequence[Tuple[str, str]], no_words: Optional[str], empty: str = "no reference text left after normalisation"
) -> Dict[str, Figure]:
    """WER and CER of normalised (reference, hypothesis) pairs: {"wer": figure in %, "cer": ...}, with their counts.

    no_words: why errors of words cannot be counted (see text.why_no_words), which is then WER's reason; CER does not
    count spaces then. empty: the reason where there is nothing to count.
    """
    figures: Dict[str, Figure] = {}
    for name, unit in (("wer", "word"), ("cer", "letter" if no_words else "char")):
        if name == "wer" and no_words:
            figures[name] = figure(None, "%", no_words)
            continue
        counts = corpus_error_rate(pairs, unit)
        rate = counts.pop("rate")
        percent = None if rate is None else 100.0 * rate
        figures[name] = figure(percent, "%", empty, counted=COUNTED[unit], **counts)
    return figures


def items(text: str, unit: str) -> List[str]:
    """What is counted of a text: its words, or its characters with or without spaces."""
    words = text.split()
    return words if unit == "word" else list((" " if unit == "char" else "").join(words))


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
