"""Path patching: what one sender tells chosen receivers."""
