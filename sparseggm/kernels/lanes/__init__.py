"""Vectors of batch elements, blocks of them, and sums over their nodes."""
