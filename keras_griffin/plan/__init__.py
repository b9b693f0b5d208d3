"""A training step compiled for a TPU slice that is not here."""
