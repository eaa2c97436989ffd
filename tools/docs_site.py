"""Hooks of mkdocs.yml: the model cards, which lie beside the weights, become pages; a site that loads anything from elsewhere
is refused."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_CARDS = Path(__file__).parent.parent / "src" / "prefcast" / "forecasts" / "builtin"
# How pages in docs/ name that folder, so that the links work on GitHub too.
_LINK = "../src/prefcast/forecasts/builtin/"
# What a browser would fetch from another host: in HTML tags other than links that a person follows, and in style sheets.
_FOREIGN = re.compile(
    r"""<(?:script|link|img|iframe|source|video|audio|embed|object)\b[^>]*\b(?:src|href|data)=["']?(?:https?:)?//[^"'> ]+"""
    r"""|(?:url\(|@import)\s*["']?(?:https?:)?//[^"') ]+"""
)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for each card."""
    for card in sorted(_CARDS.glob("*.md")):
        files.append(File.generated(config, f"cards/{card.name}", abs_src_path=str(card)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links to the cards into links inside the site."""
    return markdown.replace(f"]({_LINK}", "](cards/")


def on_post_build(*, config: MkDocsConfig) -> None:
    """Refuse a site that needs a network."""
    for path in sorted(Path(config.site_dir).rglob("*")):
        if path.suffix in (".html", ".css"):
            found = _FOREIGN.search(path.read_text(encoding="utf-8"))
            if found is not None:
                raise PluginError(f"{path}: the site must work offline, but this is loaded from elsewhere: {found[0]}")
