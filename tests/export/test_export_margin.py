"""How far a window follows the clip: which margin is taken, by what the clips' texts are in each."""

from types import SimpleNamespace

import numpy as np
import pytest

from edgeqlora_export import margin as module
from edgeqlora_export.margin import find_margin

CLIPS = [(np.zeros(16000, np.float32), "turn left"), (np.zeros(32000, np.float32), "turn right now")]


@pytest.fixture
def said(monkeypatch):
    """What a model says in a window of 10 s: margin -> texts, and how many of them had no end at first and at last."""
    table: dict = {}

    class Scripted:
        def __init__(self, bundle, runtime):
            self.margin_s = bundle.manifest["audio"]["margin"]["margin_s"]
            self.texts, self.again, self.incomplete = table[self.margin_s]

        def transcribe(self, audio):
            clip_s = len(audio) / 16000
            i = [1.0, 2.0].index(clip_s)
            heard_s = 10.0 if self.margin_s is None else clip_s + self.margin_s
            return SimpleNamespace(
                text=self.texts[i],
                n_incomplete=int(i < self.incomplete),
                n_again=int(i < self.again),
                n_pieces=1,
                heard_s=heard_s + 10.0 * (i < self.again),
                total_ms=heard_s,
            )

    monkeypatch.setattr(module, "Transcriber", Scripted)
    return table


def found(table_margins_s, least_words=5):
    bundle = SimpleNamespace(
        manifest={"audio": {"windows_s": [10.0]}, "decoder": {"language": "en", "task": "transcribe"}}
    )
    margin = find_margin(bundle, None, CLIPS, table_margins_s, least_words)
    assert bundle.manifest["audio"] == {"windows_s": [10.0]}, "left as it was"
    return margin


RIGHT, WRONG = ["turn left", "turn right now"], ["turn left", "turn right"]


def test_the_least_margin_without_more_errors_is_taken(said):
    said.update({None: (RIGHT, 0, 0), 0.5: (WRONG, 0, 0), 1.0: (RIGHT, 0, 0), 2.0: (RIGHT, 0, 0)})
    margin = found([2.0, 0.5, 1.0])
    assert (margin["margin_s"], margin["least_s"], margin["n_clips"]) == (1.0, 2.0, 2)
    assert [(row["margin_s"], row["n_errors"], row["heard_s"]) for row in margin["tried"]] == [
        (None, 0, 20.0),
        (0.5, 1, 4.0),
        (1.0, 0, 5.0),
    ]
    assert margin["tried"][1]["wer"] == pytest.approx(20.0)


def test_a_margin_with_loops_is_not_taken_though_the_whole_window_mends_them(said):
    said.update({None: (RIGHT, 0, 0), 0.5: (RIGHT, 1, 0), 1.0: (RIGHT, 0, 1)})
    margin = found([0.5, 1.0])
    assert margin["margin_s"] is None
    assert margin["reason"] == (
        "no shorter window was as good as whole ones (20 s for 2 clips, 0 errors): 0.5 s after the clip: 14 s, 0 errors, 1 heard "
        "again; 1 s after the clip: 5 s, 0 errors, 0 heard again"
    )
    assert len(margin["tried"]) == 3


def test_loops_that_are_there_in_the_whole_window_do_not_count_against_it(said):
    said.update({None: (WRONG, 0, 1), 0.5: (WRONG, 1, 1)})
    assert found([0.5])["margin_s"] == 0.5
    said.update({None: (WRONG, 0, 2), 0.5: (WRONG, 2, 2)})
    assert found([0.5])["margin_s"] is None, "each clip is heard twice: 24 s instead of 20"


def test_clips_that_fill_their_windows_gain_nothing(said):
    said.update({None: (RIGHT, 0, 0), 9.0: (RIGHT, 0, 0)})
    margin = found([9.0])
    assert margin["margin_s"] is None
    assert "(20 s for 2 clips, 0 errors): 9 s after the clip: 21 s, 0 errors, 0 heard again" in margin["reason"]


def test_too_few_words_show_nothing(said):
    margin = found([0.5], least_words=6)
    assert (margin["margin_s"], margin["tried"]) == (None, [])
    assert margin["reason"].startswith(
        "2 clips with 5 words are too few to see what a shorter window costs, 6 are needed: "
    )
    assert "give more clips with --data, or name a margin, such as --margin-s 2" in margin["reason"]
