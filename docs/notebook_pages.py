"""Pages of notebooks look like the others: a hook of mkdocs for what mkdocs-jupyter makes.

mkdocs-jupyter puts JupyterLab's style sheet of 600 kB into each page, with scripts that load more from elsewhere. This
takes them off and leaves the cells, in the theme's own elements: its colours in both modes, its button to copy code. It
also leads links to other sources to their pages, as mkdocs does in Markdown, and warns of those that lead nowhere.
"""

from __future__ import annotations

import logging
import posixpath
import re
from typing import Any

_log = logging.getLogger("mkdocs.hooks.notebook_pages")  # below "mkdocs", so that --strict counts warnings

_CELLS = re.compile(r'<div class="jupyter-wrapper">.*</div> <!-- jupyter-wrapper -->', re.DOTALL)
_LEFT_OUT = re.compile(  # the second copy of the code, for another button, the tags, and the style of pandas
    r'<div class="zeroclipboard-container">.*?</clipboard-copy>\s*</div>'
    r'|<div class="clipboard-copy-txt"[^>]*>.*?</div>'
    r'|<div class="celltoolbar">.*?</div>\s*</div>'
    r"|<style scoped(?:=\"\")?>.*?</style>",
    re.DOTALL,
)
_CODE = re.compile(r'<div class="highlight-ipynb[^"]*"><pre>(?:<span></span>)?(.*?)\n?</pre></div>', re.DOTALL)
_LINK = re.compile(r'(?<=<a href=")([^":#]+\.(?:md|ipynb))(?=[#"])')


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str | None:
    """Return the cells of a notebook, and None for any other page."""
    if not page.file.src_uri.endswith(".ipynb"):
        return None
    cells = _CELLS.search(html)
    if cells is None:
        raise ValueError(f"{page.file.src_uri}: mkdocs-jupyter writes its pages in another way now")
    text = _CODE.sub(r'<div class="highlight"><pre><code>\1</code></pre></div>', _LEFT_OUT.sub("", cells[0]))
    return _LINK.sub(lambda link: _url(link[1], page, files), text.replace('class="anchor-link"', 'class="headerlink"'))


def _url(path: str, page: Any, files: Any) -> str:
    source = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), path))
    target = files.get_file_from_path(source)
    if target is None:
        _log.warning("%s has a link to %s, and there is no such page", page.file.src_uri, path)
        return path
    return str(target.url_relative_to(page.file))
