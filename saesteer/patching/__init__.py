"""Activation, attribution and path patching, reading and circuits."""
