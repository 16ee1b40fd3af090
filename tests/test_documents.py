"""What the documents quote is what the programs say."""

from __future__ import annotations

import re
from pathlib import Path

from featstore.settings import table
from trainers import kinds

ROOT = Path(__file__).parent.parent
PACKAGES = ("featstore", "trainers", "evaluation", "diarizer", "cli")


def test_messages_that_troubleshooting_quotes_are_in_the_code() -> None:
    code = "\n".join(path.read_text("utf-8") for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py")))
    # A text that goes on in the next line of the code is one text.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    code = re.sub(r"\{[^{}]*\}", "…", code)
    rows = [
        line for line in (ROOT / "docs/troubleshooting.md").read_text("utf-8").splitlines() if line.startswith("| `")
    ]
    quoted = [text for row in rows for text in re.findall(r"`([^`]+)`", row.split(" | ")[0])]
    assert len(quoted) > 30
    assert [text for text in quoted if text not in code] == []


def test_the_table_of_settings_is_that_of_the_code() -> None:
    told = (ROOT / "docs/settings.md").read_text("utf-8")
    for kind in kinds.NAMES:
        assert f"## {kind}\n\n```text\n{table(kinds.settings_of(kind))}\n```\n" in told, (
            f"docs/settings.md is not what `trainers settings {kind}` says: python -m tests.test_documents writes it anew"
        )


def test_links_inside_the_documents_lead_somewhere() -> None:
    folders = (*PACKAGES, "docs", "data_manifests", "benchmarks", "examples")  # not tests: npm brings pages there
    pages = [*ROOT.glob("*.md"), *(page for name in folders for page in (ROOT / name).rglob("*.md"))]
    links = [
        (page, link.split("#")[0])
        for page in pages
        for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL))
        if not re.match(r"[a-z]+:|#", link)
    ]
    assert len(links) > 30
    assert [f"{page.relative_to(ROOT)}: {link}" for page, link in links if not (page.parent / link).exists()] == []


def write_settings() -> None:
    """docs/settings.md, of the code."""
    parts = [
        "# Settings\n\nWhat `trainers settings KIND` prints: `key=default`, what it may be, what it means. Give them with\n"
        "`--set key=value`, or in a TOML file with `--config`; a preset's values (`--preset small`) come before both. This page is\n"
        "made of the code (`python -m tests.test_documents`), and a test keeps it so.\n"
    ]
    parts += [f"## {kind}\n\n```text\n{table(kinds.settings_of(kind))}\n```\n" for kind in kinds.NAMES]
    (ROOT / "docs/settings.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    write_settings()
