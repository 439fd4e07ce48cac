"""Public measures on a user's own download of their data."""
