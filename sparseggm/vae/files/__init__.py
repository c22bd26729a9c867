"""Checkpoints, the lock on a run, and a run that is interrupted."""
