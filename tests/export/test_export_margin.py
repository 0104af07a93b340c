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
                heard_s=heard_s,
                total_ms=heard_s,
            )

    monkeypatch.setattr(module, "Transcriber", Scripted)
    return table


def found(table_margins_s):
    bundle = SimpleNamespace(
        manifest={"audio": {"windows_s": [10.0]}, "decoder": {"language": "en", "task": "transcribe"}}
    )
    margin = find_margin(bundle, None, CLIPS, table_margins_s)
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
    assert margin["reason"] == "every shorter window had more errors, or texts without an end"
    assert len(margin["tried"]) == 3


def test_loops_that_are_there_in_the_whole_window_do_not_count_against_it(said):
    said.update({None: (WRONG, 0, 1), 0.5: (WRONG, 1, 1)})
    assert found([0.5])["margin_s"] == 0.5


def test_clips_that_fill_their_windows_gain_nothing(said):
    said.update({None: (RIGHT, 0, 0), 9.0: (RIGHT, 0, 0)})
    margin = found([9.0])
    assert (margin["margin_s"], margin["reason"]) == (None, "the clips fill their windows")
