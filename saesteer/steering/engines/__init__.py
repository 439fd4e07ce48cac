"""Engines: what writes completions for `saesteer.generate`, one call for all of them."""
