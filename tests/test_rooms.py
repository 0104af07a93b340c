"""What import-linter does not see: names of a family outside its rooms, and folders that grow too full."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [ROOT / "edgeqlora", ROOT / "export" / "edgeqlora_export", ROOT / "jetson" / "edgeqlora_jetson"]

HOMES = ("edgeqlora/models/", "export/edgeqlora_export/", "edgeqlora/demo/")
"""Folders where a family may be named: its own below the first two, and the demo, which makes models."""

ALLOWED = {
    "edgeqlora/evaluation/scores.py": "OpenAI's text normaliser, known by the name of whisper-english",
    "edgeqlora/evaluate.py": "the same normaliser by default",
    "edgeqlora/settings/fields.py": "the same normaliser in --normaliser",
    "edgeqlora/settings/checks.py": "the same in a message",
    "edgeqlora/models/family.py": "the example of a hub name in a message",
    "edgeqlora/cli/main.py": "help: the example model, the normaliser, the demo's default",
    "edgeqlora/profiles/check.py": "the model that a profile's memory is checked with, by name in the message",
}


def words(path):
    """Names, strings and imports of a file: no comments, no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("family", ["whisper", "wav2vec2"])
def test_no_room_outside_a_familys_own_knows_it(family):
    found = set()
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            own = any(
                name.startswith(f"{home}{family}/") or (home == "edgeqlora/demo/" and name.startswith(home))
                for home in HOMES
            )
            if not own and any(family in word.lower() for word in words(path)):
                found.add(name)
    allowed = set(ALLOWED) if family == "whisper" else {"edgeqlora/cli/main.py"}
    assert found == allowed


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_a_folder_holds_at_most_twelve_files(package):
    folders = [package, *(path for path in package.rglob("*") if path.is_dir())]
    full = {str(f.relative_to(ROOT)): n for f in folders if (n := len(list(f.glob("*.py")))) > 12}
    assert not full, "make a folder of what belongs together"
