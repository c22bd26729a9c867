"""Experiments that back a claim of the documentation: each a function with its settings as typed arguments."""
