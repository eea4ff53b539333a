"""Checkpoints of other code bases, in and out: one file for each of them. Nothing is trained or run here."""
