"""Runs the notebooks from top to bottom: `python notebooks/execute.py` writes their outputs in place.

Each runs in a temporary folder, offline, with an empty store and cache: nothing is left behind, and nothing but the
package is needed. What is written has no times and no versions in it, and cells keep their ids, so that a difference
between two runs is a difference of the results.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).resolve().parent
ALL = ("quickstart.ipynb", "search_your_notes.ipynb", "convert_and_verify.ipynb")
TEXTS = "public_domain"  # the folder that a notebook searches
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_CELL_SECONDS = 600  # a cell that takes longer hangs


def execute(source: Path, model: Path | None = None) -> Any:
    """The notebook with fresh outputs; raises nbclient's CellExecutionError where a cell fails.

    model: a checkpoint folder that stands in for `pico`, the name that the notebooks use.
    """
    notebook = nbformat.read(source, as_version=4)
    with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
        work = Path(folder, "work")
        work.mkdir()
        shutil.copytree(HERE / TEXTS, work / TEXTS)
        if model is not None:
            (work / "pico").symlink_to(model.resolve(), target_is_directory=True)
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=_CELL_SECONDS,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(work)}},
        )
        client.execute(env=_environment(Path(folder)))
    return tidied(notebook)


def _environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    given = {name: value for name, value in os.environ.items() if not name.startswith("JINA_LOCAL_")}
    return given | {
        "PYTHONPATH": path,
        "JINA_LOCAL_HOME": str(folder / "store"),
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }


def tidied(notebook: Any) -> Any:
    """Without what differs from run to run or from editor to editor, and with plots of a third of the size."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            if png := output.get("data", {}).get("image/png"):
                output.data["image/png"] = _smaller(png)
    return notebook


def _smaller(png: str) -> str:
    """A plot in 256 colours, base64 in and out: nothing that an eye would miss."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        plot = image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    plot.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the notebooks and write their outputs.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(ALL)}")
    parser.add_argument("--to", type=Path, default=HERE, metavar="FOLDER", help="default: in place")
    parser.add_argument("--model", type=Path, metavar="CHECKPOINT", help="a folder to use for pico, to try one out")
    args = parser.parse_args()
    # Its cache is built here if it has to be: matplotlib would say so in the middle of a notebook.
    import matplotlib.font_manager  # noqa: F401

    for name in args.names or ALL:
        notebook = execute(HERE / name, args.model)
        nbformat.write(notebook, args.to / name)
        print(f"wrote {args.to / name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
