"""The notebooks in examples/ run from top to bottom on the bundled model, with small settings."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
EXPECTED = {
    "compress-and-look": ["times smaller", "paired.psnr"],
    "write-your-own-stage": ['did you mean "fraction"?', "of the parameters are zero"],
    "gate-your-model": ["rules hold", "layer_sqnr_db", "parity_margin_db", "figures cannot be compared"],
}


def test_every_notebook_is_known() -> None:
    assert {path.stem for path in NOTEBOOKS} == set(EXPECTED)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="pip install 'ditpress[test]'")
    client = pytest.importorskip("nbclient", reason="pip install 'ditpress[test]'").NotebookClient
    monkeypatch.setenv("DITPRESS_EXAMPLE_SAMPLES", "8")
    monkeypatch.setenv("DITPRESS_EXAMPLE_STEPS", "2")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert all(
        not cell.get("outputs") for cell in notebook.cells
    )  # results do not belong into the repository
    client(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    text = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    for words in EXPECTED[path.stem]:
        assert words in text
