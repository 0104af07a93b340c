"""The documentation is held to what is here: its commands run, its links lead somewhere, its flags and messages exist.

Marks are HTML comments on the line before a code fence, which no forge shows:

    <!-- run -->            a shell block that runs, with the environment's programs first on PATH
    <!-- run: python -->    a Python block that runs
    <!-- output -->         after a block that runs: each line must occur in what it printed; `...` stands for anything

The blocks of a file run in order in one empty folder that has `edgeqlora/` and `profiles/` of this checkout in it.
Neighbours of one language run as one program, so that a name set in one block is known in the next.
"""

import argparse
import ast
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from warm_start import warm_edgeqlora

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 150
TIMEOUT_S = 600

OTHER_PROGRAMS = {
    "apt-get", "cd", "cp", "echo", "find", "git", "grep", "head", "lint-imports", "make", "mypy", "nvpmodel", "pip",
    "pip3", "pytest", "python", "python3", "ruff", "scp", "ssh", "systemctl", "torchrun", "vermin",
}  # fmt: skip
"""Programs whose flags are not ours to check."""

_FENCE = re.compile(r"^(```+)(\w*)\s*$")
_MARK = re.compile(r"^<!-- (run|run: python|output) -->$")
_INLINE = re.compile(r"(`+)(.+?)\1")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_SHORT = re.compile(r"(?<![\w-])-[a-z](?![\w-])")
_CALL = re.compile(
    r"(?<![\w/.-])(edgeqlora|\S*edgeqlora[-_]jetson(?:\.pyz)?)[ ]+([a-z][a-z-]*)(?:[ ]+([a-z]+)(?![\w.=/]))?"
)


class Fence(NamedTuple):
    line: int
    language: str
    text: str
    mark: str


def read_fences(page):
    """Code fences of a page, and its text without them."""
    fences, prose, body, opened = [], [], [], None
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        match = _FENCE.match(line.strip())
        if opened is None and match:
            mark = _MARK.match(lines[number - 2].strip()) if number > 1 else None
            opened, body = Fence(number, match[2], "", mark[1] if mark else ""), []
        elif opened is not None and match and not match[2]:
            fences.append(opened._replace(text="\n".join(body) + "\n"))
            opened = None
        elif opened is not None:
            body.append(line)
        else:
            prose.append(line)
    assert opened is None, f"{page.name}:{opened.line}: this fence does not end"
    return fences, "\n".join(prose)


# Blocks that run


def programs(fences):
    """Neighbouring blocks of one language: (mark, [(block, lines its output must have), ...])."""
    blocks = []
    for fence, following in itertools.zip_longest(fences, fences[1:]):
        if fence.mark.startswith("run"):
            wanted = following.text.splitlines() if following and following.mark == "output" else []
            blocks.append((fence, [line for line in wanted if line.strip()]))
    return [(mark, list(group)) for mark, group in itertools.groupby(blocks, key=lambda block: block[0].mark)]


def run_program(mark, blocks, folder, programs_in=()):
    """Run the blocks as one program: (exit code, output of each block that began). programs_in: first on PATH."""
    say = "printf '\\n\\001\\n'\n" if mark == "run" else "print('\\n\\001')\n"
    path = folder / (".block.sh" if mark == "run" else ".block.py")
    path.write_text("".join(say + block.text for block, _ in blocks), encoding="utf-8")
    python_path = [str(ROOT / part) for part in ("", "export", "jetson")]
    env = {
        **{name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
        "PATH": os.pathsep.join([*programs_in, str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(python_path),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",  # models this small take twice as long where two threads wait for each other
        "XDG_CACHE_HOME": str(folder / ".cache"),
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }
    command = ["bash", "-eu", "-o", "pipefail", str(path)] if mark == "run" else [sys.executable, str(path)]
    done = subprocess.run(
        command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_S, check=False
    )
    return done.returncode, done.stdout.decode("utf-8", errors="replace").split("\n\001\n")[1:]


def occurs(line, output):
    pattern = ".*".join(re.escape(part) for part in line.strip().split("..."))
    return re.search(pattern, output) is not None


def runnable_pages():
    return [page for page in PAGES if any(fence.mark.startswith("run") for fence in read_fences(page)[0])]


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """Folder of an `edgeqlora` that has imported its libraries."""
    with warm_edgeqlora(tmp_path_factory.mktemp("warm")) as folder:
        yield str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", runnable_pages(), ids=lambda page: page.name)
def test_every_block_that_is_marked_runs(page, tmp_path, warm):
    """README's with the program as installed, the others with one that starts faster."""
    for name in ("edgeqlora", "profiles"):
        (tmp_path / name).symlink_to(ROOT / name)
    for mark, blocks in programs(read_fences(page)[0]):
        code, outputs = run_program(mark, blocks, tmp_path, [] if page.name == "README.md" else [warm])
        last = blocks[max(0, len(outputs) - 1)][0]
        shown = outputs[-1][-3000:] if outputs else "(nothing ran)"
        assert code == 0, f"{page.name}:{last.line}: this block ends with exit code {code}:\n{shown}"
        for (block, wanted), output in zip(blocks, outputs, strict=True):
            for line in wanted:
                assert occurs(line, output), f"{page.name}:{block.line}: no line of its output is {line!r}:\n{output}"


def test_every_mark_stands_before_a_fence():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        n_marks = len(re.findall(r"^\s*<!-- (?:run|output)", text, re.MULTILINE))
        assert n_marks == sum(bool(fence.mark) for fence in read_fences(page)[0]), page.name


def test_the_checks_see_what_they_are_for(tmp_path):
    """A block that fails stops its program; an output is compared with its own block's; flags go with their command."""
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- run -->\n```\na=1; echo one\n```\n<!-- output -->\n```\no...\n```\n<!-- run -->\n```\necho $a; false\n```\n"
        "<!-- run: python -->\n```python\nb = 2\n```\n<!-- run: python -->\n```python\nprint(b)\n```\n"
    )
    (shell, python) = programs(read_fences(page)[0])
    code, outputs = run_program(*shell, tmp_path)
    assert code == 1
    assert [text.strip() for text in outputs] == ["one", "1"]
    assert occurs("o...", outputs[0])
    assert not occurs("o...", outputs[1])
    assert run_program(*python, tmp_path) == (0, ["", "2\n"])
    assert list(wrong_calls("edgeqlora train --target cpu")) == ["edgeqlora train has no --target"]
    assert list(wrong_calls("edgeqlora tain")) == ["there is no edgeqlora tain"]
    assert list(wrong_calls("python3 edgeqlora-jetson.pyz bench --host x")) == ["the runner's bench has no --host"]
    assert list(wrong_calls("see --no-such-flag")) == ["no command has --no-such-flag"]
    assert not list(wrong_calls("torchrun --nproc-per-node 2 -m edgeqlora train --config train.toml"))


# Links


def slug(heading):
    """The anchor that forges give a heading."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def headings(page):
    return [slug(m[1]) for m in re.finditer(r"^#{1,6}\s+(.+?)\s*$", read_fences(page)[1], re.MULTILINE)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_heading(page):
    for link in _LINK.findall(_INLINE.sub("", read_fences(page)[1])):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{page.name}: {link}: there is no such file"
        assert ROOT in target.parents, f"{page.name}: {link}: outside the repository"
        if anchor:
            assert anchor in headings(target), f"{page.name}: {link}: no such heading"


def test_readme_leads_to_every_page_and_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in _LINK.findall(text)}
    assert not set(PAGES[1:]) - linked, "pages that README does not link"


# Commands and flags


def cli_flags():
    """Command as it is written -> its flags, of the workstation's command line."""
    import typer

    from edgeqlora.cli.board import _ssh_parser
    from edgeqlora.cli.main import app

    passed_on = runner_flags()
    passed_on["bench"] |= {flag for action in _ssh_parser()._actions for flag in action.option_strings}

    def walk(command, name):
        flags = {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)} | {"--help"}
        yield name, flags | (passed_on[name] if command.context_settings.get("ignore_unknown_options") else set())
        for part, child in getattr(command, "commands", {}).items():
            yield from walk(child, f"{name} {part}".strip())

    return dict(walk(typer.main.get_command(app), ""))


def runner_flags():
    """The same of the runner on the board."""
    from edgeqlora_jetson.__main__ import build_parser

    parser = build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    return {name: {flag for a in sub._actions for flag in a.option_strings} for name, sub in commands.items()}


CLI, RUNNER = cli_flags(), runner_flags()
ALL_FLAGS = set().union(*CLI.values(), *RUNNER.values())


def wrong_calls(segment):
    """What a piece of shell (one command) says of our commands that is not so."""
    call = _CALL.search(segment)
    if call is None:
        words = [word for word in segment.replace("$ ", "").split() if "=" not in word and word != "sudo"]
        program = words[0].rsplit("/", 1)[-1] if words else ""
        if program not in OTHER_PROGRAMS:
            yield from (f"no command has {flag}" for flag in _FLAG.findall(segment) if flag not in ALL_FLAGS)
        return
    runner = "jetson" in call[1]
    commands, title = (RUNNER, "the runner's") if runner else (CLI, "edgeqlora")
    name = f"{call[2]} {call[3]}" if f"{call[2]} {call[3]}" in commands else call[2]
    if name not in commands:
        yield f"there is no {call[1]} {call[2]}"
        return
    flags = segment[call.end(2) :]
    for flag in [*_FLAG.findall(flags), *_SHORT.findall(flags)]:
        if flag not in commands[name]:
            yield f"{title} {name} has no {flag}"


def segments(page):
    """Every piece of a page that can name a command or a flag."""
    fences, prose = read_fences(page)
    for fence in fences:
        if fence.language in ("", "bash", "sh", "text", "console"):
            for line in fence.text.replace("\\\n", " ").splitlines():
                yield from re.split(r"&&|;|\||\s#", line)
    for line in prose.splitlines():
        for code in _INLINE.findall(line):
            yield from re.split(r"&&|;|\|", code[1])
    yield from (flag for flag in _FLAG.findall(_INLINE.sub("", prose)))


def test_the_table_of_settings_has_every_setting_with_its_default():
    import dataclasses

    from edgeqlora.settings import TrainSettings

    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (`--.+?) \| (?:`(.*?)`)? \| .+ \|$", text, re.MULTILINE)
    written = {name: default for name, _, default in rows}
    for field in dataclasses.fields(TrainSettings):
        default = field.default if field.default is not dataclasses.MISSING else field.default_factory()
        shown = "" if default in (None, "", []) and default is not False else str(default)
        assert written.pop(field.name) == (shown.lower() if isinstance(default, bool) else shown), field.name
    assert not written


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_flag_exists(page):
    wrong = [text for segment in segments(page) for text in wrong_calls(segment)]
    assert not wrong, page.name


# Messages


def literals():
    """Every literal piece of text in the code; what is filled in divides a text into pieces."""
    pieces = set()
    for package in ("edgeqlora", "export", "jetson"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    pieces.update(re.split(r"\{[^{}]*\}", node.value.replace("{{", "\001").replace("}}", "\002")))
    return {piece.replace("\001", "{").replace("\002", "}") for piece in pieces}


def test_every_message_of_troubleshooting_is_in_the_code():
    prose = read_fences(ROOT / "docs" / "troubleshooting.md")[1]
    messages = re.findall(r"^#{3} (`+)(.+?)\1\s*$", prose, re.MULTILINE)
    known = literals()
    assert len(messages) >= 25
    for _, message in messages:
        for part in message.split("..."):
            words = part.strip()
            assert not words or any(words in piece for piece in known), f"{message}: {words!r} is not in the code"


# Formats


def test_every_key_of_manifest_and_report_is_in_the_page_about_them():
    from edgeqlora_jetson.bench.run import Settings, run_bench
    from edgeqlora_jetson.bundle import Bundle, manifest

    text = (ROOT / "docs" / "bundle.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.\[\]-]+)`", text))
    by_kind = [*manifest._FEATURES.values(), *(kind.required for kind in manifest.DECODERS.values())]
    for keys in (manifest._REQUIRED, manifest._OPTIONAL, *by_kind):
        assert {key for key in keys if not key.startswith("profile.")} <= named
    opened = Bundle.load(ROOT / "tests" / "jetson" / "fixtures" / "bundle")
    assert {*opened.manifest} - named <= {"model", "audio", "features"}
    report = run_bench(opened, opened.read_eval_clips(), Settings(repeats=1, power="none"))
    parts = [part for part in report.values() if isinstance(part, dict) and "value" not in part]
    keys = {key for part in parts for key in part} | {key for row in report["utterances"] for key in row}
    assert {*report, *keys} - named == set()
