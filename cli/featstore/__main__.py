"""``python -m cli.featstore`` is the same command, also where nothing is installed."""

from __future__ import annotations

from cli.featstore import app

if __name__ == "__main__":
    app()
