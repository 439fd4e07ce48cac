"""saesteer: steer language models with sparse-autoencoder features, with evidence that it works."""

__version__ = "0.1.0"
