"""``python -m cli.whowhen`` is the same command, also where nothing is installed."""

from __future__ import annotations

from cli.whowhen import app

if __name__ == "__main__":
    app()
