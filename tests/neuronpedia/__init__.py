"""Tests of the client, against a local player of the service."""
