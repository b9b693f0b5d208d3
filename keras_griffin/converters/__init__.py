"""Checkpoints of other libraries: Hugging Face's and DeepMind's."""
