"""Ranks that move while a run goes on."""
