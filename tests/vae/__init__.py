"""The variational autoencoder: data, bounds, training, files and command line, in settings that run in seconds."""
