"""The notebooks in examples/: they run from top to bottom as they stand, and hold no results."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SAID = {
    "compress-and-look": [
        "times smaller",
        "paired.psnr",
        "transformer_blocks.",
        "hidden_states",
        "image/png",
    ],
    "gate-your-model": ["rules hold", "layer_sqnr_db", "parity_margin_db", "figures cannot be compared"],
    "write-your-own-stage": ['did you mean "fraction"?', "50.0% of the MLP weights are zero", "- wanda:"],
}


def run(notebook: NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Execute all cells in ``folder``; what they printed and showed. A cell that raises raises here."""
    for variable in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):  # nothing of it in the user's home
        monkeypatch.setenv(variable, str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(
        output.get("text", "") + "".join(f"{kind} {text}" for kind, text in output.get("data", {}).items())
        for output in outputs
    )


def test_every_notebook_is_known() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(SAID)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_hold_no_results(path: Path) -> None:
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        assert not cell.metadata  # no tag that lets a cell raise
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
        else:  # figures come from the cells that measure them
            assert not re.search(r"\d", re.sub(r"`[^`]*`", "", cell.source)), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run(nbformat.read(path, as_version=nbformat.NO_CONVERT), tmp_path, monkeypatch)
    for words in SAID[path.stem]:
        assert words in said


def test_a_cell_that_raises_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError('planted')")])
    with pytest.raises(CellExecutionError, match="planted"):
        run(notebook, tmp_path, monkeypatch)
