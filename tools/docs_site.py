"""Hooks of mkdocs.yml: the model cards, which lie beside the weights, become pages of the site."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_CARDS = Path(__file__).parent.parent / "src" / "prefcast" / "forecasts" / "builtin"
# How pages in docs/ name that folder, so that the links work on GitHub too.
_LINK = "../src/prefcast/forecasts/builtin/"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for each card."""
    for card in sorted(_CARDS.glob("*.md")):
        files.append(File.generated(config, f"cards/{card.name}", abs_src_path=str(card)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to the cards into links inside the site."""
    return markdown.replace(f"]({_LINK}", "](cards/")
