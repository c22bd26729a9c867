"""Positive definiteness: Gershgorin's bounds, families of matrices, certified eigenvalues."""
