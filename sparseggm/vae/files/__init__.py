"""Checkpoints, the lock on a run, and interruption by signals."""
