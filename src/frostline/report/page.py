"""One self-contained page of HTML: opened from a disk, without a network, it shows all that a run folder holds.

plotly's own script is part of the file (some 5 MB), the page asks nobody for anything, and a policy in its head forbids
it to. What the run brings, words above all, is data from somewhere: it is escaped wherever it stands.
"""

from __future__ import annotations

import os
import secrets
from html import escape
from importlib.resources import files
from pathlib import Path

from frostline.errors import MissingExtraError, RunFolderError
from frostline.report.contents import read_contents
from frostline.report.sections import body, title

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write_page(run_folder: str | os.PathLike[str], file: str | os.PathLike[str]) -> Path:
    """Write the page of a run folder.

    Args:
        run_folder: What `fl.Recorder`, `describe_run`, `frostline tagger train` or `frostline demo` left.
        file: Where to write, conventionally `report.html`; written beside it first, then renamed.

    Returns:
        The path of the file.

    Raises:
        RunFolderError: It is no run folder, a file in it is damaged, or the page cannot be written.
        MissingExtraError: plotly is not installed.

    Cost: a second or two; 5 MB, nearly all of it plotly.
    """
    contents = read_contents(run_folder)
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtraError("the page's charts need plotly. Install it: pip install 'frostline[report]'") from None
    text_of_it, charts = body(contents)
    own = files("frostline.report")
    text = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title(contents))}</title>
<link rel="icon" href="data:,">
<style>
{own.joinpath("style.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<main>
{text_of_it}
</main>
<script type="application/json" id="figures">{charts}</script>
<script>{get_plotlyjs()}</script>
<script>
{own.joinpath("page.js").read_text(encoding="utf-8")}</script>
</body>
</html>
"""
    path = Path(file)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(text.encode("utf-8", "replace"))
        temporary.replace(path)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be written: {error.strerror}. Name another file with -o.") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path
