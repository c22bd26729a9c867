"""Structure alone: nonzero patterns, which nodes are joined, in which order they are eliminated. No values."""
