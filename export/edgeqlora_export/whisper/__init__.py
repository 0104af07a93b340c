"""Whisper's graphs, decoding rules and parity."""
