"""The confusion picture: which type of entity is taken for which, missed or invented."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

from frostline.errors import DataFileError, MissingExtraError
from frostline.tagger.scoring.error_analysis import NONE, Errors

_FORMATS = (".pdf", ".png", ".svg")
_NAME_OF_NONE = "nothing"


def draw_confusion(errors: Errors, path: str | os.PathLike[str]) -> None:
    """Write a picture of gold types (down) against the types of their predicted partners (across).

    Args:
        errors: What `analyse` returned. A pair with the same type but other bounds is on the diagonal.
        path: File to write, .png, .svg or .pdf; one that is there is replaced.

    Raises:
        DataFileError: another ending, no entity to draw, or a file that cannot be written.
        MissingExtraError: matplotlib is not installed.

    Cost: about a second.
    """
    path = Path(path)
    if path.suffix not in _FORMATS:
        raise DataFileError(f"{path}: a picture that ends in {path.suffix!r}. Choose one of {', '.join(_FORMATS)}.")
    counts = errors.confusion
    if not counts:
        raise DataFileError(f"{path}: no entity in the text, gold or predicted, so there is nothing to draw.")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("pictures need matplotlib. Install it: pip install 'frostline[demo]'") from None

    types = [*sorted({kind for pair in counts for kind in pair} - {NONE}), NONE]
    rows = [[counts[gold, predicted] for predicted in types] for gold in types]
    shares = [[count / max(sum(row), 1) for count in row] for row in rows]
    names = [kind or _NAME_OF_NONE for kind in types]

    side = 1.8 + 0.75 * len(types)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for y, row in enumerate(rows):
        for x, count in enumerate(row):
            if count:
                axes.text(
                    x, y, f"{count:,}", ha="center", va="center", color="white" if shares[y][x] > 0.5 else "black"
                )
    as_written = {"parse_math": False}  # a type may hold $
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", **as_written)
    axes.set_yticks(range(len(names)), names, **as_written)
    axes.set(xlabel="predicted", ylabel="gold")
    axes.set_title("Entities by type; the shade is the share of a row", fontsize="medium", loc="left")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)

    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # of a type's name, such as 地名
            figure.savefig(unfinished, format=path.suffix[1:], dpi=150)
        unfinished.replace(path)
    except OSError as error:
        raise DataFileError(f"{path}: cannot be written: {error.strerror}. Name another file.") from None
    finally:
        unfinished.unlink(missing_ok=True)
