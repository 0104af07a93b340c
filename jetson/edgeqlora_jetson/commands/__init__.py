"""The runner's commands: plain values in, text out."""
