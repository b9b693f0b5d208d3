"""Presets, and the checkpoints of other libraries, in and out."""
