"""Dense parts of one large matrix, their assembly along the elimination tree, and the tree itself."""
