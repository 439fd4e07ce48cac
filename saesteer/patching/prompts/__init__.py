"""Clean and corrupted prompts: pairs, files, tokens, IOI."""
