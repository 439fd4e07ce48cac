"""Write the reference of every module to site/, the public names on its first page."""

from __future__ import annotations

from pdoc.__main__ import cli

import saesteer


def main() -> None:
    """Load the public names, which pdoc looks for in the module itself, and call pdoc."""
    for name in saesteer.__all__:
        setattr(saesteer, name, getattr(saesteer, name))
    cli(["--output-directory", "site", "--docformat", "google", "saesteer"])


if __name__ == "__main__":
    main()
