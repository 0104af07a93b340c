"""Readers of data that is no JSONL manifest: corpora, tables, Hugging Face sets."""
