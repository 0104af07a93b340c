"""Errors that end a command with a clear message and exit code 2, never a traceback."""

from edgeqlora_jetson.errors import UserError

__all__ = ["UserError"]
