"""Kernels on chains, which need no index arrays: a batch of them, or one long one in parts."""
