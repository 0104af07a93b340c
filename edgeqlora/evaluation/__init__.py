"""Recognised text and its scores."""
