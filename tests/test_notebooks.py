"""Run the notebooks of examples/ as Jupyter does, offline in an empty folder, and look at what they show and write."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssa_fast import SSAResult

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
TIMEOUT = 600  # seconds of a cell, on a busy machine


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "examples" / name).read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat comes with nbclient, in the extra test")
    notebook = read(path.name)
    nbformat.validate(notebook)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    for cell in notebook["cells"]:
        assert cell["metadata"] == {}
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
    text = "".join(notebook["cells"][0]["source"])
    assert text.startswith("# ")
    assert "pip install" in text
    for target in re.findall(r"\]\((\.\./[^)#]+|\w+\.ipynb)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
    assert f'run("{path.name}"' in Path(__file__).read_text(encoding="utf-8"), "it is run by no test"


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Run a notebook in ``folder`` with this interpreter; return the outputs of all its cells."""
    for package, extra in {"nbclient": "test", "ipykernel": "test", "timm": "photos", "matplotlib": "figures"}.items():
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} comes with the extra {extra}")
    import nbformat
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class ThisInterpreter(KernelSpecManager):
        """Whatever kernels are installed, the one of the interpreter that runs the tests."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
            return KernelSpec(argv=command, language="python", display_name=kernel_name)

    for variable in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(folder / ".jupyter"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.reads(json.dumps(read(name)), as_version=4)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        km=AsyncKernelManager(kernel_spec_manager=ThisInterpreter()),
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()  # raises what a cell raises
    return [dict(output) for cell in notebook.cells for output in cell.get("outputs", [])]


def shown(outputs: list[dict[str, Any]], kind: str) -> list[str]:
    """Return what the cells show as one MIME type, or print to "stdout" or "stderr"."""
    if kind.startswith("std"):
        return [output["text"] for output in outputs if output["output_type"] == "stream" and output["name"] == kind]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


def assert_no_warning(outputs: list[dict[str, Any]]) -> None:
    """But tqdm's, which timm imports: it asks for ipywidgets."""
    assert [text for text in shown(outputs, "stderr") if "TqdmWarning" not in text] == []


def pictures(outputs: list[dict[str, Any]]) -> list[np.ndarray]:
    data = [base64.b64decode(text) for text in shown(outputs, "image/png")]
    return [np.asarray(Image.open(io.BytesIO(each)).convert("RGB")) for each in data]


def marks_the_cat(mask: np.ndarray) -> bool:
    """Whether a mask (H, W) of scikit-image's photograph of a cat is on its head, not in the corner that lacks it."""
    return bool(mask.shape == (300, 451) and mask[90:240, 120:330].mean() > mask[:60, -60:].mean() + 0.5)


@pytest.mark.slow
def test_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = run("quickstart.ipynb", tmp_path, monkeypatch)
    assert_no_warning(outputs)
    (page,) = shown(outputs, "text/html")
    assert page.count("<figure") == 3
    assert "Egyptian cat 0." in page

    photo, overlay, figure, mask = pictures(outputs)
    tint = overlay.astype(int) - photo
    assert np.abs(tint[90:240, 120:330]).mean() > 2 * np.abs(tint[:60, -60:]).mean()
    assert figure.shape[1] > 600
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    labels = np.asarray(Image.open(tmp_path / "mask.png"))
    assert set(np.unique(labels)) == {0, 1}
    assert marks_the_cat(labels)
    assert np.array_equal((mask > 0).any(-1), labels == 1)

    boxes, again = shown(outputs, "stdout")
    (x1, y1, x2, y2) = map(int, re.findall(r"\d+", boxes.split(":")[1]))
    assert x1 < 150 < 300 < x2
    assert y1 < 120 < 210 < y2
    assert again.strip().endswith("True")
    assert "point_coords" in shown(outputs, "text/plain")[-1]
    result = SSAResult.load(tmp_path / "result.npz")
    assert result.names == [["Egyptian cat", "tiger cat", "tabby"]]
    assert result.cams.shape == (1, 3, 300, 451)


@pytest.mark.slow
def test_polish_your_cams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("torchcam", "pytorch_grad_cam"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} comes with the extra peers")
    outputs = run("polish_your_cams.ipynb", tmp_path, monkeypatch)
    assert_no_warning(outputs)
    assert shown(outputs, "stdout")[0] == "Egyptian cat\n"
    compared = [picture for picture in pictures(outputs) if picture.shape == (300, 902, 3)]
    assert len(compared) == 2
    for picture in compared:  # both halves are the photograph under different maps
        assert 5 < np.abs(picture[:, :451].astype(int) - picture[:, 451:]).mean() < 120
    assert marks_the_cat(np.asarray(Image.open(tmp_path / "mask.png")) == 1)
    (page,) = shown(outputs, "text/html")
    assert page.count("<figure") == 1
    assert "Egyptian cat" in page
    assert "prototypes/torch" in shown(outputs, "stdout")[-1]
