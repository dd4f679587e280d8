"""One self-contained page of HTML that shows everything in a run folder, without a network.

plotly's script is part of the file (about 5 MB). The page loads nothing, and its Content-Security-Policy forbids it to.
Text from the run is not trusted: it is escaped everywhere.
"""

from __future__ import annotations

import os
from html import escape
from importlib.resources import files
from pathlib import Path

from frostline.errors import MissingExtraError, RunFolderError
from frostline.files import replacing
from frostline.report.contents import read_contents
from frostline.report.sections import body, title

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_page(run_folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """Write the page of a run folder.

    Args:
        run_folder: What `fl.Recorder`, `describe_run`, `frostline tagger train` or `frostline demo` wrote.
        path: The file to write, conventionally `report.html`; an existing one is replaced atomically.

    Returns:
        `path`.

    Raises:
        RunFolderError: `run_folder` is not a run folder, a file in it is damaged, or the page cannot be written.
        MissingExtraError: plotly is not installed.

    Cost: a second or two; 5 MB, nearly all of it plotly.
    """
    contents = read_contents(run_folder)
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtraError("the page's charts need plotly. Install it: pip install 'frostline[report]'") from None
    sections, charts = body(contents)
    package = files("frostline.report")
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title(contents))}</title>
<link rel="icon" href="data:,">
<style>
{package.joinpath("style.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{sections}
</main>
<script type="application/json" id="figures">{charts}</script>
<script>{get_plotlyjs()}</script>
<script>
{package.joinpath("page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""
    path = Path(path)
    try:
        with replacing(path) as unfinished:
            unfinished.write_bytes(text.encode("utf-8", "replace"))
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be written: {error.strerror}. Name another file (-o FILE).") from None
    return path
