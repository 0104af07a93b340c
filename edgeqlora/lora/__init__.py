"""Adapters and their ranks."""
