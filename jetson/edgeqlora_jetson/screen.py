"""What is printed: texts and names of files must not steer the terminal, and commands can be pasted into a shell."""

import re
import shlex
import sys
from typing import Any, Match

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


def visible(text: str) -> str:
    """Text with control characters (but for line ends and tabs) and broken characters of file names as \\u001b."""
    return _CONTROL.sub(_escape, text)


def show(text: Any = "", file: Any = None) -> None:
    """Print a line that may hold names and texts of files; every line of a command goes through here."""
    print(visible(str(text)), file=sys.stdout if file is None else file)


def command_line(*words: Any) -> str:
    """Words as one command that a shell takes apart into the same words."""
    return " ".join(shlex.quote(str(word)) for word in words)


def _escape(match: Match[str]) -> str:
    return "\\u{:04x}".format(ord(match.group()))
