"""Images in tiles: whatever the tiling, order or sharding, the whole image's answer; and nothing beyond the budget."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import ssa_fast
from ssa_fast import Affinity, Keys, Prototypes
from ssa_fast.streaming import parse_bytes
from tests.accuracy import assert_as_accurate

K, C, H, W = 3, 24, 19, 26
SIGNED = {
    "signed": Affinity(),
    "centred": Affinity(center=True),
    "power": Affinity(power=2.0, center=True),
    "exp": Affinity(phi="exp", temperature=0.2),
    "threshold": Affinity(threshold=0.3),
    "cube": Affinity(power=3.0),
}


def draw(
    seed: int = 0, *, signed: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cam = torch.rand(K, H, W, generator=generator)
    feats = torch.randn(C, H, W, generator=generator)
    return cam.to(dtype), (feats if signed else feats.relu()).to(dtype)


def cut(tensor: torch.Tensor, rows: list[int], columns: list[int]) -> list[torch.Tensor]:
    """Tiles of ``(…, H, W)`` between the cuts, which include both ends."""
    spans = [list(pairwise(cuts)) for cuts in (rows, columns)]
    return [tensor[..., y0:y1, x0:x1] for y0, y1 in spans[0] for x0, x1 in spans[1]]


def stitched(tiles: list[torch.Tensor], rows: list[int], columns: list[int]) -> torch.Tensor:
    across = len(columns) - 1
    bands = [torch.cat(tiles[i * across : (i + 1) * across], dim=-1) for i in range(len(rows) - 1)]
    return torch.cat(bands, dim=-2)


def cuts(length: int) -> st.SearchStrategy[list[int]]:
    return st.sets(st.integers(1, length - 1), max_size=4).map(lambda inner: [0, *sorted(inner), length])


@settings(max_examples=25, deadline=None)
@given(rows=cuts(H), columns=cuts(W), order=st.randoms(use_true_random=False), seed=st.integers(0, 99))
def test_any_tiling_in_any_order_is_the_whole_image(rows, columns, order, seed) -> None:
    cam, feats = draw(seed)
    tiles = list(zip(cut(cam, rows, columns), cut(feats, rows, columns), strict=True))
    shuffled = order.sample(tiles, len(tiles))
    prototypes = Prototypes(K, C)
    for tile in shuffled:
        prototypes.add(*tile)
    out = stitched([prototypes.apply(tile) for _, tile in tiles], rows, columns)
    assert prototypes.pixels == H * W
    assert_as_accurate(out[None], cam[None], feats[None], Affinity())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_strides(dtype: torch.dtype) -> None:
    cam, feats = draw(dtype=dtype)
    feats = feats.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # channels last
    prototypes, keys = Prototypes(K, C), Keys(K, C)
    for tile, features in zip(cut(cam, [0, 7, H], [0, 9, W]), cut(feats, [0, 7, H], [0, 9, W]), strict=True):
        prototypes.add(tile, features)
        keys.add(tile, features)
    for out in (prototypes.apply(feats), keys.apply(feats)):
        assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_as_accurate(out[None], cam[None], feats[None], Affinity())


def test_a_batch_is_several_tiles_of_the_same_image() -> None:
    cam, feats = draw()
    one, many = Prototypes(K, C), Prototypes(K, C)
    halves = [tensor[..., : W // 2] for tensor in (cam, feats)], [tensor[..., W // 2 :] for tensor in (cam, feats)]
    for half in halves:
        one.add(*half)
    many.add(*(torch.stack(pair) for pair in zip(*halves, strict=True)))
    assert many.pixels == one.pixels
    torch.testing.assert_close(many.sums, one.sums, rtol=1e-6, atol=1e-6)
    batch = torch.stack([half[1] for half in halves])
    torch.testing.assert_close(many.apply(batch)[1], many.apply(batch[1]))


def test_thousands_of_tiles_lose_nothing() -> None:
    """In float32 the sums of like-signed numbers would drift by far more than the rule allows."""
    generator = torch.Generator().manual_seed(1)
    cam, feats = torch.rand(1, 1, 4, 4, generator=generator), 100 + torch.rand(1, 8, 4, 4, generator=generator)
    prototypes = Prototypes(1, 8)
    for _ in range(5000):
        prototypes.add(cam[0], feats[0])
    exact = Prototypes(1, 8)
    exact.add(cam[0].double(), feats[0].double())
    relative = ((prototypes.sums / 5000 - exact.sums) / exact.sums).abs().max()
    assert relative < 2 * torch.finfo(torch.float32).eps, relative


def test_merging_and_saving(tmp_path: Path) -> None:
    cam, feats = draw()
    first, second, whole = Prototypes(K, C), Prototypes(K, C), Prototypes(K, C)
    first.add(cam[:, :8], feats[:, :8])
    second.add(cam[:, 8:], feats[:, 8:])
    whole.add(cam, feats)
    torch.save(second.state_dict(), tmp_path / "second.pt")
    loaded = Prototypes(K, C)
    loaded.load_state_dict(torch.load(tmp_path / "second.pt", weights_only=True))
    first.merge(loaded)
    assert first.pixels == whole.pixels
    torch.testing.assert_close(first.sums, whole.sums, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"^other: expected K=3, C=24"):
        first.merge(Prototypes(K, C + 1))
    with pytest.raises(ValueError, match=r"^state: expected sums of shape"):
        Prototypes(K + 1, C).load_state_dict(second.state_dict())


SHARD = """
import sys, torch, torch.distributed as dist
from tests.test_streaming import draw, K, C
from ssa_fast import Prototypes
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
cam, feats = draw(3)
prototypes = Prototypes(K, C)
for row in range(rank, cam.shape[1], world):
    prototypes.add(cam[:, row : row + 1], feats[:, row : row + 1])
prototypes.all_reduce()
torch.save([prototypes.apply(feats), prototypes.pixels], f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_image(world: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen([sys.executable, "-c", SHARD, str(tmp_path)], env={**shared, "RANK": str(rank)})
        for rank in range(world)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0] * world
    cam, feats = draw(3)
    for rank in range(world):
        out, pixels = torch.load(tmp_path / f"{rank}.pt")
        assert pixels == H * W
        assert_as_accurate(out[None], cam[None], feats[None], Affinity())


def test_negative_features_are_refused_and_change_nothing() -> None:
    prototypes = Prototypes(K, C)
    cam, feats = draw()
    prototypes.add(cam, feats)
    before = prototypes.state_dict()
    for promise in (None, False):
        with pytest.raises(ValueError, match=r"^feats: expected features >= 0.*Keys is exact for signed"):
            prototypes.add(*draw(signed=True), nonnegative=promise)
    assert torch.equal(prototypes.state_dict()["sums"], before["sums"])
    assert prototypes.pixels == before["pixels"]


def test_nan_goes_through_as_nan() -> None:
    cam, feats = draw()
    feats[0, 0, 0] = float("nan")
    prototypes = Prototypes(K, C)
    prototypes.add(cam, feats)
    assert prototypes.apply(feats).isnan().all()


@pytest.mark.parametrize("name", SIGNED)
def test_keys_are_exact_for_every_affinity(name: str, tmp_path: Path) -> None:
    affinity, rows, columns = SIGNED[name], [0, 5, 13, H], [0, 11, W]
    cam, feats = draw(signed=True)
    tiles = list(zip(cut(cam, rows, columns), cut(feats, rows, columns), strict=True))
    with Keys(K, C, affinity=affinity) as keys, Keys(K, C, affinity=affinity, memory="3MB", scratch=tmp_path) as stored:
        stored._room = 4000  # so that most of it goes to the file
        for tile in tiles:
            keys.add(*tile)
            stored.add(*tile)
        assert stored._stored
        assert not keys._stored
        assert keys.exact
        assert (keys.keys, keys.pixels) == (H * W, H * W)
        out = stitched([keys.apply(tile) for _, tile in tiles], rows, columns)
        assert_as_accurate(out[None], cam[None], feats[None], affinity)
        from_disk = stitched([stored.apply(tile) for _, tile in tiles], rows, columns)
        assert torch.equal(from_disk, out)


def test_strided_keys_are_an_approximation_that_says_so() -> None:
    """Prints its error; the docstring of Keys quotes it."""
    y, x = torch.meshgrid(torch.linspace(0, 6, 64), torch.linspace(0, 6, 64), indexing="ij")
    waves = [torch.sin(a * y + b * x + a * b) for a in range(1, 5) for b in range(1, 5)]
    feats, cam = torch.stack(waves), torch.exp(-((y - 2) ** 2 + (x - 4) ** 2))[None]
    whole = ssa_fast.polish(cam, feats, path="tiled")
    errors = {}
    for stride in (1, 2, 4):
        keys = Keys(1, len(waves), stride=stride)
        for top in (0, 31):  # the second tile begins off the grid
            keys.add(cam[:, top : top + 31 + 2 * (top > 0)], feats[:, top : top + 31 + 2 * (top > 0)], at=(top, 0))
        assert keys.keys == (64 // stride) ** 2
        assert keys.exact is (stride == 1)
        errors[stride] = float((keys.apply(feats) - whole).abs().max() / (whole.max() - whole.min()))
    print(errors)
    assert errors[1] < 1e-5 < errors[2] < errors[4] < 0.05


PEAK = """
import resource, torch
from ssa_fast import Keys
torch.set_num_threads(1)
cam, feats = torch.rand(1, 64, 128), torch.randn(64, 64, 128)
small = Keys(1, 64); small.add(cam, feats); small.apply(feats); small.close()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with Keys(1, 64, memory="300MB") as keys:
    for row in range(300):  # 600 MB of pixels
        keys.add(cam, feats)
    keys.apply(feats[:, :1])
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1000)
"""


def test_keys_stay_within_their_budget() -> None:
    grown = float(subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True).stdout)
    assert 10 < grown < 300, f"{grown} MB"


def test_the_file_goes_with_the_keys(tmp_path: Path) -> None:
    def open_files():
        return {os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)}

    keys = Keys(K, C, scratch=tmp_path)
    keys.add(*draw(signed=True))
    keys.close()
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    assert not [link for link in links if link.is_symlink() and str(tmp_path) in os.readlink(link)]
    with pytest.raises(ValueError, match="call add first"):
        keys.apply(draw()[1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prototypes(0, C), r"^K: expected a whole number > 0, got 0"),
        (lambda: Prototypes(K, C, affinity=Affinity(power=2.0)), r"^affinity: expected φ = relu with power 1"),
        (lambda: Prototypes(K, C, affinity=Affinity(center=True)), r"Keys is exact for any affinity"),
        (lambda: Keys(K, C, affinity=Affinity(steps=2)), r"^affinity: expected steps=1, got 2"),
        (lambda: Keys(K, C, stride=0), r"^stride: expected a whole number > 0"),
        (lambda: Keys(K, C, memory="1kB"), r"^memory: expected at least [\d,]+ bytes for blocks of 256 pixels"),
        (lambda: Keys(K, C, memory="much"), r"^memory: expected bytes > 0"),
        (lambda: Keys(K, C).add(torch.rand(K, 2, 2), torch.rand(1, C, 2, 2)), r"^feats: expected one tile"),
        (lambda: Keys(K, C).apply(torch.rand(C, 2, 2)), r"^feats: nothing was added yet"),
        (
            lambda: Prototypes(K, C).add(torch.rand(K, 2, 2), torch.rand(C, 2, 3)),
            r"^cam: expected the tile's own pixels",
        ),
        (lambda: Prototypes(K, C).add(torch.rand(K + 1, 2, 2), torch.rand(C, 2, 2)), r"^cam: expected \(3, h, w\)"),
        (lambda: Prototypes(K, C).apply(torch.rand(2, 2)), r"^feats: expected \(n, 24, h, w\), got \(2, 2\)"),
        (
            lambda: Prototypes(K, C).add(torch.rand(K, 2, 2, requires_grad=True), torch.rand(C, 2, 2)),
            r"^cam: expected a tensor without grad",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^cam: expected a floating-point tensor"):
        Prototypes(1, 2).add(torch.ones(1, 2, 2, dtype=torch.int64), torch.rand(2, 2, 2))


def test_bytes_in_words() -> None:
    assert [parse_bytes(text) for text in (7, "4GB", "1.5 MiB", "10k", "2TiB")] == [7, 4 * 10**9, 1572864, 10**4, 2**41]
    for wrong in ("", "GB", "-1GB", 0, "1XB", True):
        with pytest.raises(ValueError, match=r"^memory: expected bytes > 0"):
            parse_bytes(wrong)
