"""Neuronpedia: the client and its offline cache."""
