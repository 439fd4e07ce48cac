"""The fast engine behind activation patching."""
