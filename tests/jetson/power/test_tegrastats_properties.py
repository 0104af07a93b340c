"""The parser of tegrastats against anything: no exception, no wrong rail, no total that is not there."""

import os

import pytest

pytest.importorskip("hypothesis")

from fixtures.tegrastats_expected import EXPECTED
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tegrastats import LINES, TABLES

from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.power import resolve_scope
from edgeqlora_jetson.power.tegrastats_line import TegrastatsLine, parse_line

FUTURE = st.sampled_from(
    [
        "FUTURE_TOKEN",
        "NVENC2_FREQ @99",
        "ISP off",
        "cpu2@41.5C",
        "GR3D_FREQ",
        "VIN",
        "VDD_IN",
        "mW",
        "12",
        "1/2",
        "[1,2]",
    ]
    + ["POWER 12W", "FAN 40%", "@", "(lfb", "VDD_IN: 5W", "VIN 5000", "VDD_IN 5000mW", "VDD_IN=5000mW/5000mW"]
)
# The bare name of an input rail between another rail's name and value makes that value its own: no junk, a wrong line.
JUNK = st.one_of(
    FUTURE.filter(lambda text: text not in ("VIN", "VDD_IN")), st.text(max_size=12).filter(lambda text: "/" not in text)
)


@given(st.text(max_size=400))
def test_any_text(text):
    assert isinstance(parse_line(text), TegrastatsLine)


@given(st.text(alphabet="VDD_IN RAMCPUSW@[]()%/-.0123456789mWCoff,\n\t\0", max_size=200))
def test_any_text_of_its_letters(text):
    line = parse_line(text)
    assert all(isinstance(power_mw, int) for power_mw in line.rails_mw.values())


N = int(os.environ.get("EDGEQLORA_MUTATIONS", "400"))


@settings(max_examples=N)
@given(st.sampled_from(EXPECTED), st.lists(st.tuples(st.integers(0, 200), JUNK), max_size=6))
def test_junk_between_the_words_never_changes_a_rail_nor_makes_a_total(row, insertions):
    """A rail may be cut in two by junk and be gone; it must not read another value, and no other may become the total."""
    words = LINES[row["line"] - 1].split()
    for position, junk in insertions:
        words.insert(min(position, len(words)), junk)
    rails_mw = parse_line(" ".join(words)).rails_mw
    table = TABLES[row["device"]]
    known = {table.total_rail} | set(table.sum_rails) | set(table.optional_rails)
    seen = {name: power_mw for name, power_mw in rails_mw.items() if name in known}
    for name, power_mw in seen.items():
        # "1/2" after a name that lost its own values is two words of junk that make a value: no field of tegrastats.
        assert power_mw in (row.get("rails", {}).get(name), 1), name
    if row["total_mw"] is None and not seen:
        with pytest.raises(UserError):
            resolve_scope(table, list(rails_mw))


@settings(max_examples=N)
@given(
    st.sampled_from(EXPECTED),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 9), st.text(max_size=9)), min_size=1, max_size=4),
)
def test_a_damaged_line_gives_whole_numbers_and_a_scope_or_a_refusal(row, damages):
    """Pieces of the line cut out, overwritten, or with something between."""
    line = LINES[row["line"] - 1]
    for position, length, text in damages:
        line = line[:position] + text + line[position + length :]
    rails_mw = parse_line(line).rails_mw
    assert all(isinstance(power_mw, int) and abs(power_mw) < 10**9 for power_mw in rails_mw.values())
    try:
        scope = resolve_scope(TABLES[row["device"]], list(rails_mw))
    except UserError:
        return
    assert set(scope.rails) <= set(rails_mw)


@given(st.sampled_from(EXPECTED), st.lists(st.tuples(st.integers(0, 60), FUTURE.filter(lambda t: t != "1/2"))))
def test_new_fields_between_the_old_ones_change_nothing(row, insertions):
    """Junk at the borders of fields: every rail still there, and the total the recorded one."""
    line = LINES[row["line"] - 1]
    expected = parse_line(line)
    fields = split_before_rails(line)
    for position, junk in insertions:
        fields.insert(min(position, len(fields)), junk)
    found = parse_line(" ".join(fields))
    assert found.rails_mw == expected.rails_mw
    if row["total_mw"] is not None:
        scope = resolve_scope(TABLES[row["device"]], list(found.rails_mw))
        assert sum(found.rails_mw[rail] for rail in scope.rails) == row["total_mw"]


@given(st.sampled_from([row for row in EXPECTED if row["total_mw"] is not None]), st.data())
def test_without_its_rails_no_total(row, data):
    """Take rails away: the total is the recorded one or refused, never less."""
    rails = row["rails"]
    kept = data.draw(st.lists(st.sampled_from(sorted(rails)), unique=True))
    table = TABLES[row["device"]]
    if table.total_rail in kept:
        assert resolve_scope(table, kept).rails == (table.total_rail,)
    elif table.sum_rails and set(table.sum_rails) <= set(kept):
        scope = resolve_scope(table, kept)
        assert scope.energy_scope == "sum_of_rails"
        assert set(table.sum_rails) <= set(scope.rails)
    else:
        with pytest.raises(UserError):
            resolve_scope(table, kept)


@given(st.sampled_from(LINES), st.integers(0, 700))
def test_a_line_cut_short_has_no_rail_of_another_value_now(line, length):
    whole = parse_line(line)
    for name, power_mw in parse_line(line[:length]).rails_mw.items():
        assert power_mw == whole.rails_mw[name]


def split_before_rails(line):
    """The line in pieces such that a rail's name and values stay together; all before the rails is one piece."""
    words, fields = line.split(), []
    head = []
    for word in words:
        if fields and "/" in word and head[-1:] and head[-1].isupper():
            fields.append(head.pop() + " " + word)
        else:
            head.append(word)
        if not fields:
            fields.append("")
    return [" ".join(head)] + fields[1:]
