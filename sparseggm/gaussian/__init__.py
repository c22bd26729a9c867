"""The Gaussian graphical model in NumPy: probability, inference, fitting, files."""
