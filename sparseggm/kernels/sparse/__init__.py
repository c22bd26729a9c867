"""Kernels on any pattern."""
