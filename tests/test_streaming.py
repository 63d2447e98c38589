"""Streaming: any tiling, order or sharding gives the whole image's result, within the memory budget."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import socket
import subprocess
import sys
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import rand

import ssa_fast
from ssa_fast import Affinity, FeatureMean, InputWarning, PixelBank, Prototypes
from ssa_fast.io.sizes import parse_bytes
from tests.accuracy import assert_as_accurate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

K, C, H, W = 3, 24, 19, 26
PLAIN = Affinity()
CENTRED = Affinity(phi="shifted", center=True)
LINEAR = {
    "relu": PLAIN,
    "shifted": Affinity(phi="shifted"),
    "half": Affinity(phi="shifted", shift=0.5),
    "far": Affinity(phi="shifted", shift=20.0),
    "centred": CENTRED,
    "centred half": Affinity(phi="shifted", shift=0.5, center=True),
}
SIGNED = {
    "signed": PLAIN,
    "centred": Affinity(center=True),
    "power": Affinity(power=2.0, center=True),
    "exp": Affinity(phi="exp", temperature=0.2),
    "threshold": Affinity(threshold=0.3),
    "cube": Affinity(power=3.0),
    "shifted": Affinity(phi="shifted", shift=0.5),
    "shifted cube": Affinity(phi="shifted", power=3.0),
    "shifted root": Affinity(phi="shifted", power=0.5, center=True),
}
linear = pytest.mark.parametrize("affinity", LINEAR.values(), ids=LINEAR)


def draw(
    seed: int = 0, *, signed: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cam = rand(K, H, W, generator=generator)
    feats = torch.randn(C, H, W, generator=generator)
    return cam.to(dtype), (feats if signed else feats.relu()).to(dtype)


Tile = tuple[torch.Tensor, torch.Tensor]


def split(cam: torch.Tensor, feats: torch.Tensor, rows: list[int], columns: list[int]) -> list[Tile]:
    """Cut both into tiles at ``rows`` and ``columns``, which include both ends."""
    bounds = [(y0, y1, x0, x1) for y0, y1 in pairwise(rows) for x0, x1 in pairwise(columns)]
    return [(cam[..., y0:y1, x0:x1], feats[..., y0:y1, x0:x1]) for y0, y1, x0, x1 in bounds]


def apply_tiles(accumulator: Prototypes | PixelBank, tiles: list[Tile], columns: list[int]) -> torch.Tensor:
    """Apply to each tile and put the results together."""
    out, across = [accumulator.apply(feats) for _, feats in tiles], len(columns) - 1
    return torch.cat([torch.cat(out[i : i + across], dim=-1) for i in range(0, len(out), across)], dim=-2)


def empty_prototypes(affinity: Affinity, tiles: list[Tile]) -> Prototypes:
    """Return ``Prototypes`` without a pixel, but with the mean feature of the tiles where the affinity centres."""
    mean = FeatureMean(C)
    for _, feats in tiles:
        mean.add(feats)
    return Prototypes(K, C, affinity=affinity, mean=mean.value if affinity.center else None)


def assert_exact(out: torch.Tensor, cam: torch.Tensor, feats: torch.Tensor, affinity: Affinity = PLAIN) -> None:
    """Assert that ``out`` is as accurate as the reference for one image without a batch dimension."""
    assert_as_accurate(out[None], cam[None], feats[None], affinity)


def cut_positions(length: int) -> st.SearchStrategy[list[int]]:
    return st.sets(st.integers(1, length - 1), max_size=4).map(lambda inner: [0, *sorted(inner), length])


@settings(max_examples=40, deadline=None)
@given(
    rows=cut_positions(H),
    columns=cut_positions(W),
    order=st.randoms(use_true_random=False),
    seed=st.integers(0, 99),
    affinity=st.sampled_from(list(LINEAR.values())),
)
def test_any_tiling_in_any_order_is_the_whole_image(rows, columns, order, seed, affinity) -> None:
    cam, feats = draw(seed, signed=affinity.any_sign)
    tiles = split(cam, feats, rows, columns)
    prototypes = empty_prototypes(affinity, order.sample(tiles, len(tiles)))
    for tile in order.sample(tiles, len(tiles)):
        prototypes.add(*tile)
    assert prototypes.pixels == H * W
    assert_exact(apply_tiles(prototypes, tiles, columns), cam, feats, affinity)


@linear
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_strides(dtype: torch.dtype, affinity: Affinity) -> None:
    cam, feats = draw(dtype=dtype, signed=affinity.any_sign)
    feats = feats.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # channels last
    tiles = split(cam, feats, [0, 7, H], [0, 9, W])
    prototypes, bank = empty_prototypes(affinity, tiles), PixelBank(K, C, affinity=affinity)
    for tile in tiles:
        prototypes.add(*tile)
        bank.add(*tile)
    for out in (prototypes.apply(feats), bank.apply(feats)):
        assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_exact(out, cam, feats, affinity)


NEARLY_CONSTANT = {"CAM": (0.7, 1e-4, 0.0, 1.0), "features": (0.0, 1.0, 3.0, 1e-3), "both": (0.7, 1e-4, -3.0, 1e-3)}


@linear
@pytest.mark.parametrize("offsets", NEARLY_CONSTANT.values(), ids=NEARLY_CONSTANT)
def test_nearly_constant_images(offsets: tuple[float, ...], affinity: Affinity) -> None:
    cam, feats = draw(signed=affinity.any_sign)
    cam, feats = offsets[0] + offsets[1] * cam, offsets[2] + offsets[3] * feats
    feats = feats if affinity.any_sign else feats.abs()
    tiles, columns = split(cam, feats, [0, 1, 11, H], [0, 6, W]), [0, 6, W]
    prototypes = empty_prototypes(affinity, tiles)
    for tile in tiles:
        prototypes.add(*tile)
    assert_exact(apply_tiles(prototypes, tiles, columns), cam, feats, affinity)


def test_a_small_spread_of_the_cam_is_not_lost_in_the_sums() -> None:
    """The CAM's mean cancels between the sums; float32 tiles would leave an error relative to it."""
    cam, feats = draw(signed=True)
    cam = 0.7 + 1e-4 * cam
    prototypes, exact = (Prototypes(K, C, affinity=LINEAR["shifted"]) for _ in range(2))
    for tile in split(cam, feats + 3, [0, 1, 11, H], [0, 6, W]):
        prototypes.add(*tile)
    exact.add(cam.double(), (feats + 3).double())
    small, expected = (
        each.sums[:-1, :-1] - each.sums[:-1, -1:] / each.pixels * each.sums[-1:, :-1] for each in (prototypes, exact)
    )
    error = ((small - expected).abs().max() / expected.abs().max()).item()
    assert error < 4 * torch.finfo(torch.float32).eps, error


@pytest.mark.parametrize(("affinity", "expected"), [(LINEAR["shifted"], 1.0), (LINEAR["half"], 1.0), (PLAIN, 0.0)])
def test_a_zero_feature_gets_the_cams_mean_or_zero(affinity: Affinity, expected: float) -> None:
    cam, feats = draw()
    feats[:, 3, 4] = 0.0
    prototypes, bank = empty_prototypes(affinity, [(cam, feats)]), PixelBank(K, C, affinity=affinity)
    for each in (prototypes, bank):
        each.add(cam, feats)
        torch.testing.assert_close(each.apply(feats)[:, 3, 4], expected * cam.mean(dim=(1, 2)), rtol=1e-6, atol=0)


def test_the_mean_feature_of_tiles() -> None:
    _, feats = draw(signed=True)
    mean, part = FeatureMean(C), FeatureMean(C)
    mean.add(feats[:, :0])
    mean.add(feats[:, :5].permute(1, 2, 0).contiguous().permute(2, 0, 1))
    part.add(torch.stack([feats[:, 5:, :13], feats[:, 5:, 13:]]))  # two tiles at once
    mean.merge(part)
    assert mean.pixels == H * W
    torch.testing.assert_close(mean.value, feats.double().mean(dim=(1, 2)), rtol=1e-13, atol=1e-15)
    wide = torch.rand(3, 200, 300, dtype=torch.float16)  # in several blocks
    (many := FeatureMean(3)).add(wide)
    torch.testing.assert_close(many.value, wide.double().mean(dim=(1, 2)), rtol=1e-13, atol=0)


def test_a_batch_is_several_tiles_of_the_same_image() -> None:
    cam, feats = draw()
    one, many = Prototypes(K, C), Prototypes(K, C)
    halves = split(cam, feats, [0, H], [0, W // 2, W])
    for half in halves:
        one.add(*half)
    many.add(*(torch.stack(pair) for pair in zip(*halves, strict=True)))
    assert many.pixels == one.pixels
    torch.testing.assert_close(many.sums, one.sums, rtol=1e-6, atol=1e-6)
    batch = torch.stack([half[1] for half in halves])
    torch.testing.assert_close(many.apply(batch)[1], many.apply(batch[1]))


def test_thousands_of_tiles_lose_nothing() -> None:
    """Float32 sums of numbers of one sign would drift by far more than the accuracy rule allows."""
    generator = torch.Generator().manual_seed(1)
    cam, feats = rand(1, 1, 4, 4, generator=generator), 100 + rand(1, 8, 4, 4, generator=generator)
    prototypes, exact = Prototypes(1, 8), Prototypes(1, 8)
    for _ in range(5000):
        prototypes.add(cam[0], feats[0])
    exact.add(cam[0].double(), feats[0].double())
    relative = ((prototypes.sums / 5000 - exact.sums) / exact.sums).abs().max()
    assert relative < 2 * torch.finfo(torch.float32).eps, relative


@linear
def test_merging_and_saving(affinity: Affinity, tmp_path: Path) -> None:
    cam, feats = draw(signed=affinity.any_sign)
    first, second, whole, loaded = (empty_prototypes(affinity, [(cam, feats)]) for _ in range(4))
    first.add(cam[:, :8], feats[:, :8])
    second.add(cam[:, 8:], feats[:, 8:])
    whole.add(cam, feats)
    torch.save(second.state_dict(), tmp_path / "second.pt")
    if loaded.mean is not None:
        loaded.mean.zero_()
    loaded.load_state_dict(torch.load(tmp_path / "second.pt", weights_only=True))
    first.merge(loaded)
    assert first.pixels == whole.pixels
    torch.testing.assert_close(first.sums, whole.sums, rtol=1e-6, atol=1e-5)
    assert_exact(first.apply(feats), cam, feats, affinity)
    with pytest.raises(ValueError, match=r"^other: expected K=3, C=24"):
        first.merge(Prototypes(K, C + 1))
    with pytest.raises(ValueError, match=r"^state: expected sums of shape"):
        Prototypes(K + 1, C).load_state_dict(second.state_dict())
    with pytest.raises(ValueError, match=r"^state: expected sums of shape .* with sum_eps=0.1, got"):
        Prototypes(K, C, affinity=Affinity(sum_eps=0.1)).load_state_dict(second.state_dict())


SHARD = """
import sys, torch, torch.distributed as dist
from tests.test_streaming import CENTRED, LINEAR, draw, K, C
from ssa_fast import FeatureMean, Prototypes
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
results = {}
for name, affinity in LINEAR.items():
    cam, feats = draw(3, signed=affinity.any_sign)
    rows = range(rank, cam.shape[1], world)
    mean = FeatureMean(C)
    for row in rows:
        mean.add(feats[:, row : row + 1])
    own = mean.value
    mean.all_reduce()
    prototypes = Prototypes(K, C, affinity=affinity, mean=mean.value if affinity.center else None)
    for row in rows:
        prototypes.add(cam[:, row : row + 1], feats[:, row : row + 1])
    prototypes.all_reduce()
    results[name] = [prototypes.apply(feats), prototypes.pixels, mean.pixels]
try:
    Prototypes(K, C, affinity=CENTRED, mean=own).all_reduce()
except ValueError as error:
    results["refused"] = str(error)
Prototypes(K, C, affinity=CENTRED, mean=torch.full((C,), float("nan"))).all_reduce()
torch.save(results, f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.distributed
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_an_image(world: int, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", SHARD, str(tmp_path)], env={**os.environ, **shared, "RANK": str(rank)})
        for rank in range(world)
    ]
    assert [rank.wait(timeout=600) for rank in ranks] == [0] * world
    for rank in range(world):
        results = torch.load(tmp_path / f"{rank}.pt")
        assert results.pop("refused").startswith("mean: expected the same mean feature in all processes")
        for name, (out, *pixels) in results.items():
            assert pixels == [H * W, H * W]
            assert_exact(out, *draw(3, signed=LINEAR[name].any_sign), LINEAR[name])


def test_negative_features_are_refused_and_change_nothing() -> None:
    prototypes = Prototypes(K, C)
    cam, feats = draw()
    prototypes.add(cam, feats)
    before = prototypes.state_dict()
    with pytest.raises(ValueError, match=r"^feats: expected features >= 0.*phi='shifted', or PixelBank"):
        prototypes.add(*draw(signed=True))
    with pytest.raises(ValueError, match=r"^nonnegative: expected True or None, got False"):
        prototypes.add(*draw(), nonnegative=False)
    assert torch.equal(prototypes.state_dict()["sums"], before["sums"])
    assert prototypes.pixels == H * W


@linear
def test_nan_goes_through_as_nan(affinity: Affinity) -> None:
    cam, feats = draw(signed=affinity.any_sign)
    cam[1, 2, 3] = float("nan")
    one, both = empty_prototypes(affinity, [(cam, feats)]), feats.clone()
    one.add(cam, feats)
    assert one.apply(feats).isnan().flatten(1).all(dim=1).tolist() == [False, True, False]
    assert one.apply(feats).isnan().flatten(1).any(dim=1).tolist() == [False, True, False]
    both[0, 0, 0] = float("nan")
    many = [empty_prototypes(affinity, [(cam, both)]) for _ in range(2)]
    for each in many:
        each.add(cam, both)
    many[0].merge(many[1])
    assert many[0].pixels == 2 * H * W
    assert many[0].apply(both).isnan().all()


def spilling(scratch: Path, **options: object) -> PixelBank:
    """Return a ``PixelBank`` that holds next to nothing in memory."""
    bank = PixelBank(K, C, memory="4MB", scratch=scratch, **options)
    bank._buffer._memory_left = 4000
    return bank


def open_files(folder: Path) -> list[Path]:
    """Return this process's descriptors of open files in a folder, including files without a name."""
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return [link for link in links if link.is_symlink() and os.readlink(link).startswith(str(folder))]


def on_disk(folder: Path) -> int:
    """Return the bytes of these files."""
    return sum(link.stat().st_size for link in open_files(folder))


@pytest.mark.parametrize("name", SIGNED)
def test_the_bank_is_exact_for_every_affinity(name: str, tmp_path: Path) -> None:
    affinity, rows, columns = SIGNED[name], [0, 5, 13, H], [0, 11, W]
    cam, feats = draw(signed=True)
    tiles = split(cam, feats, rows, columns)
    with PixelBank(K, C, affinity=affinity) as bank, spilling(tmp_path, affinity=affinity) as spilled:
        for tile in tiles:
            bank.add(*tile)
            spilled.add(*tile)
        assert on_disk(tmp_path) > bank._buffer.size / 2
        assert bank.exact
        assert (bank.stored, bank.pixels) == (H * W, H * W)
        out = apply_tiles(bank, tiles, columns)
        assert_exact(out, cam, feats, affinity)
        assert torch.equal(apply_tiles(spilled, tiles, columns), out)


def test_a_strided_bank_reports_that_it_is_an_approximation() -> None:
    """Print the error, which the docstring of ``PixelBank`` quotes."""
    y, x = torch.meshgrid(torch.linspace(0, 6, 64), torch.linspace(0, 6, 64), indexing="ij")
    waves = [torch.sin(a * y + b * x + a * b) for a in range(1, 5) for b in range(1, 5)]
    feats, cam = torch.stack(waves), torch.exp(-((y - 2) ** 2 + (x - 4) ** 2))[None]
    whole = ssa_fast.polish(cam, feats, method="tiled")
    errors = {}
    for stride in (1, 2, 4):
        bank = PixelBank(1, len(waves), stride=stride)
        for top in (0, 31):  # the second tile begins off the grid
            bank.add(cam[:, top : top + 31 + 2 * (top > 0)], feats[:, top : top + 31 + 2 * (top > 0)], at=(top, 0))
        assert bank.stored == (64 // stride) ** 2
        assert bank.exact is (stride == 1)
        errors[stride] = float((bank.apply(feats) - whole).abs().max() / (whole.max() - whole.min()))
    print(errors)
    assert errors[1] < 1e-5 < errors[2] < errors[4] < 0.05


def test_thousands_of_blocks_lose_nothing() -> None:
    """Float32 sums over blocks would drift by far more than the accuracy rule allows."""
    generator = torch.Generator().manual_seed(1)
    cam, feats = rand(1, 4, 4, generator=generator), rand(8, 4, 4, generator=generator)
    affinity = Affinity(sum_eps=0.0)
    with PixelBank(1, 8, affinity=affinity) as one, PixelBank(1, 8, affinity=affinity) as many:
        one.add(cam, feats)
        for _ in range(3000):
            many.add(cam, feats)
        once, sums = (bank._accumulate(bank._unit(feats.flatten(1), None), None) for bank in (one, many))
        assert ((sums / 3000 - once) / once).abs().max() < 1e-12


def peak_of(work: Callable[[], object], trace: Path) -> int:
    """Return the peak bytes that PyTorch allocated while ``work`` ran, its kernels' workspaces included.

    Counted by PyTorch: a process's size also depends on how much freed memory its C library retains.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # many small products: on busy cores threads would wait for each other
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            work()
    finally:
        torch.set_num_threads(threads)
    profile.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    return max(accumulate(event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "dtype", "affinity", "tiles", "h", "w"),
    [
        (1, torch.float32, Affinity(), 90, 32, 32),
        (1, torch.float32, Affinity(center=True, threshold=0.1), 1, 360, 256),
        (1, torch.float16, Affinity(center=True, threshold=0.1), 1, 360, 256),
        (200, torch.float64, Affinity(center=True, threshold=0.1), 10, 36, 32),
        (200, torch.float64, Affinity(phi="exp", temperature=0.5), 1, 1, 11520),
    ],
    ids=["many", "one", "half", "classes", "line"],
)
def test_the_bank_stays_within_its_budget(classes, dtype, affinity, tiles, h, w, tmp_path: Path) -> None:
    """The budget is under half the pixels' bytes; it excludes the given tiles and the returned map."""
    channels, budget = 64, 8_000_000
    cam, feats = rand(classes, h, w).to(dtype), torch.randn(channels, h, w).to(dtype)
    targets = feats[:, :32, :40].double() if h > 1 else feats[:, :, :1300].double()
    stored = tiles * h * w * (channels + classes) * max(dtype.itemsize, 4)
    assert stored > 2 * budget

    def work() -> None:
        with PixelBank(classes, channels, affinity=affinity, memory=budget, scratch=tmp_path) as bank:
            for _ in range(tiles):
                bank.add(cam, feats)
            bank.apply(targets)

    peak = peak_of(work, tmp_path / "trace.json") - classes * targets[0].nbytes  # less the returned map
    print(f"{peak:,} bytes of {budget:,}, {stored:,} stored")
    assert budget / 2 < peak <= budget


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """Limit files to ``size`` bytes: writes stop in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_full_disk_loses_only_that_tile(dtype: torch.dtype, tmp_path: Path) -> None:
    affinity = Affinity(center=True)
    cam, feats = draw(signed=True)
    tiles = split(cam, feats, [0, 7, 14, H], [0, W])
    big = [rand(rows, 40, 40, dtype=dtype) for rows in (K, C)]
    with spilling(tmp_path, affinity=affinity) as bank:
        bank.add(*tiles[0])
        before, size = on_disk(tmp_path), bank._buffer.size
        needed = big[0].nbytes + big[1].nbytes
        message = rf"scratch: expected room in .*{tmp_path.name}.* for {needed:,} bytes"
        with small_disk(before + needed // 2), pytest.raises(OSError, match=message) as full:
            bank.add(*big)
        assert full.value.errno == errno.EFBIG
        assert (on_disk(tmp_path), bank._buffer.size) == (before, size)
        assert bank.stored == bank.pixels == 7 * W
        for tile in tiles[1:]:
            bank.add(*tile)
        assert_exact(bank.apply(feats), cam, feats, affinity)


def test_a_tile_that_does_not_fit_leaves_the_memory_as_it_was(tmp_path: Path) -> None:
    """Its first blocks would have been held in memory; the next ones failed."""
    with PixelBank(K, C, memory="4MB", scratch=tmp_path) as bank:
        memory_left = bank._buffer._memory_left = 40_000
        with small_disk(100), pytest.raises(OSError, match=r"bytes of pixels beside 0 there"):
            bank.add(rand(K, 40, 40), rand(C, 40, 40))
        assert (bank._buffer._memory_left, bank._buffer.size, bank.stored, bank.pixels) == (memory_left, 0, 0, 0)
        with pytest.raises(ValueError, match="call add first"):
            bank.apply(draw()[1])


def test_a_file_cut_short_is_noticed(tmp_path: Path) -> None:
    with spilling(tmp_path) as bank:
        bank.add(*draw(signed=True))
        bank._buffer._file.truncate(1000)
        with pytest.raises(OSError, match="it was cut short"):
            bank.apply(draw()[1])


def test_a_merged_bank_holds_all_tiles(tmp_path: Path) -> None:
    affinity = Affinity(center=True)
    cam, feats = draw(signed=True)
    with spilling(tmp_path, affinity=affinity) as first, PixelBank(K, C, affinity=affinity) as second:
        first.add(cam[:, :4], feats[:, :4])
        second.add(cam[:, 4:], feats[:, 4:])  # in one block, larger than those of the first
        assert second._block > (H - 4) * W > first._block
        first.merge(second)
        assert first.stored == first.pixels == H * W
        assert second.stored == (H - 4) * W
        assert max(block.numel() for block in first._buffer) <= first._block * (K + C)
        assert_exact(first.apply(feats), cam, feats, affinity)
        second.merge(PixelBank(K, C, affinity=affinity))
        assert second.stored == (H - 4) * W
        before = on_disk(tmp_path)
        with small_disk(before + 100), pytest.raises(OSError, match="scratch: expected room"):
            first.merge(second)
        assert (first.stored, first.pixels, on_disk(tmp_path)) == (H * W, H * W, before)


@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode_makes_no_difference(inside: bool, tmp_path: Path) -> None:
    """What was made in inference mode can be used outside it, and the reverse."""
    cam, feats = draw(signed=True)
    with torch.inference_mode(inside):
        mean = FeatureMean(C)
        mean.add(feats[:, :8].clone())
    with torch.inference_mode(not inside):
        mean.add(feats[:, 8:])
    with torch.inference_mode(inside):
        both = [Prototypes(K, C, affinity=CENTRED, mean=mean.value), spilling(tmp_path, affinity=CENTRED)]
        for each in both:
            each.add(cam[:, :8].clone(), feats[:, :8].clone())
        loaded = Prototypes(K, C, affinity=CENTRED, mean=torch.zeros(C))
    with torch.inference_mode(not inside):
        loaded.load_state_dict(both[0].state_dict())
        for each in (*both, loaded):
            each.add(cam[:, 8:], feats[:, 8:])
            assert_exact(each.apply(feats), cam, feats, CENTRED)


def test_autocast_makes_no_difference() -> None:
    cam, feats = draw(signed=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prototypes = empty_prototypes(CENTRED, [(cam, feats)])
        prototypes.add(cam, feats)
        out = prototypes.apply(feats)
    assert_exact(out, cam, feats, CENTRED)


def test_a_loaded_state_and_a_given_mean_are_copies() -> None:
    mean, other = torch.ones(C, dtype=torch.float64), torch.zeros(C, dtype=torch.float64)
    first, second = (Prototypes(K, C, affinity=CENTRED, mean=each) for each in (mean, other))
    first.add(*draw())
    state = first.state_dict()
    second.load_state_dict(state)
    kept = state["sums"].clone()
    second.add(*draw(1))
    assert torch.equal(state["sums"], kept)
    for tensor in (state["sums"], state["mean"], mean):
        tensor.fill_(7.0)
    assert torch.equal(first.mean, torch.ones_like(mean))
    assert torch.equal(second.mean, first.mean)
    assert not other.any()
    assert not (second.sums == 7.0).any()


@pytest.mark.parametrize("ending", ["close", "with", "error", "forgotten"])
def test_the_file_is_removed_with_the_bank(ending: str, tmp_path: Path) -> None:
    def used() -> PixelBank:
        bank = spilling(tmp_path)
        bank.add(*draw(signed=True))
        assert on_disk(tmp_path) > 10_000
        return bank

    if ending == "close":
        used().close()
    elif ending == "with":
        with used():
            pass
    elif ending == "error":
        with pytest.raises(KeyError), used():
            raise KeyError
    else:
        used()
        gc.collect()
    assert not open_files(tmp_path)
    assert not list(tmp_path.iterdir())


def closed() -> PixelBank:
    bank = PixelBank(K, C)
    bank.add(*draw())
    bank.close()
    bank.close()
    return bank


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Prototypes(0, C), r"^K: expected a whole number > 0, got 0"),
        (
            lambda: Prototypes(K, C, affinity=Affinity(power=2.0)),
            r"^affinity: expected phi='shifted', or phi='relu' .*of power 1, got power=2.0; PixelBank is exact",
        ),
        (lambda: Prototypes(K, C, affinity=Affinity(center=True)), r"PixelBank is exact for any affinity"),
        (lambda: Prototypes(K, C, affinity=Affinity(phi="shifted", power=2.0)), r"^affinity: expected .*of power 1"),
        (
            lambda: Prototypes(K, C, affinity=CENTRED),
            r"^mean: expected the image's mean feature, \(24,\), with center=True, got None; see FeatureMean",
        ),
        (
            lambda: Prototypes(K, C, affinity=CENTRED, mean=rand(1, C)),
            r"^mean: expected the image's mean feature, .*got shape \(1, 24\)",
        ),
        (
            lambda: Prototypes(K, C, mean=rand(C)),
            r"^mean: expected None with center=False, got shape \(24,\)",
        ),
        (
            lambda: Prototypes(K, C, affinity=CENTRED, mean=rand(C)).merge(
                Prototypes(K, C, affinity=CENTRED, mean=rand(C))
            ),
            r"^other: expected the same mean feature, got another",
        ),
        (lambda: FeatureMean(0), r"^C: expected a whole number > 0"),
        (lambda: FeatureMean(C).value, r"^feats: nothing was added yet"),
        (lambda: FeatureMean(C).add(rand(C + 1, 2, 2)), r"^feats: expected \(24, h, w\), got \(25, 2, 2\)"),
        (lambda: FeatureMean(C).add(rand(C, 2)), r"^feats: expected \(n, 24, h, w\), got \(24, 2\)"),
        (lambda: FeatureMean(C).merge(FeatureMean(C + 1)), r"^other: expected C=24, got C=25"),
        (lambda: (mean := FeatureMean(C)).merge(mean), r"^other: expected another FeatureMean, got the same"),
        (lambda: PixelBank(K, C, affinity=Affinity(steps=2)), r"^affinity: expected steps=1, got 2"),
        (lambda: PixelBank(K, C, stride=0), r"^stride: expected a whole number > 0"),
        (lambda: PixelBank(K, C, memory="1kB"), r"^memory: expected at least [\d,]+ bytes for blocks of 256 pixels"),
        (lambda: PixelBank(K, C, memory="much"), r"^memory: expected bytes > 0"),
        (lambda: PixelBank(K, C).add(rand(K, 2, 2), rand(1, C, 2, 2)), r"^feats: expected one tile"),
        (lambda: PixelBank(K, C).apply(rand(C, 2, 2)), r"^feats: nothing was added yet"),
        (lambda: Prototypes(K, C).add(rand(K, 2, 2), rand(C, 2, 3)), r"^cam: expected the tile's own pixels"),
        (lambda: Prototypes(K, C).add(rand(K + 1, 2, 2), rand(C, 2, 2)), r"^cam: expected \(3, h, w\)"),
        (lambda: Prototypes(K, C).apply(rand(C, 2, 2)), r"^feats: nothing was added yet"),
        (lambda: Prototypes(K, C).load_state_dict({}), r"^state: expected a dict with the tensor 'sums'.*got \[\]"),
        (lambda: Prototypes(K, C).load_state_dict(3), r"^state: expected a dict with the tensor 'sums'.*got int"),
        (lambda: Prototypes(K, C).load_state_dict({"sums": torch.zeros(K + 1, C)}), r"got \['sums'\]"),
        (lambda: closed().add(*draw()), r"^add: expected an open PixelBank, got a closed"),
        (lambda: closed().apply(draw()[1]), r"^apply: expected an open PixelBank, got a closed"),
        (lambda: PixelBank(K, C).merge(closed()), r"^other: expected an open PixelBank, got a closed"),
        (lambda: closed().merge(PixelBank(K, C)), r"^merge: expected an open PixelBank, got a closed"),
        (lambda: PixelBank(K, C).merge(PixelBank(K, C, stride=2)), r"^other: expected .*stride=1, got .*stride=2"),
        (
            lambda: PixelBank(K, C).merge(PixelBank(K, C, affinity=SIGNED["cube"])),
            r"^other: expected .*got .*power=3.0",
        ),
        (lambda: (bank := PixelBank(K, C)).merge(bank), r"^other: expected another PixelBank, got the same"),
        (lambda: Prototypes(K, C).add(rand(2, 2), rand(2, 2)), r"^cam: expected \(n, 3, h, w\), got \(2, 2\)"),
    ],
)
def test_wrong_arguments_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_gradients_are_dropped_with_a_note() -> None:
    cam, feats = rand(K, 2, 2), rand(C, 2, 2)
    plain, noted = Prototypes(K, C), Prototypes(K, C)
    plain.add(cam, feats)
    with pytest.warns(InputWarning, match=r"^cam: requires_grad=True.*no_grad") as caught:
        noted.add(cam.clone().requires_grad_(), feats)
    assert caught[0].filename == __file__
    with pytest.warns(InputWarning, match=r"^feats: requires_grad=True"):
        out = noted.apply(feats.clone().requires_grad_())
    assert not out.requires_grad
    assert torch.equal(out, plain.apply(feats))


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^other: expected Prototypes, got PixelBank"):
        Prototypes(K, C).merge(PixelBank(K, C))
    with pytest.raises(TypeError, match=r"^other: expected PixelBank, got dict"):
        PixelBank(K, C).merge({})
    with pytest.raises(TypeError, match=r"^feats: expected a floating-point tensor"):
        FeatureMean(2).add(torch.ones(2, 2, 2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"^cam: expected a floating-point tensor"):
        Prototypes(1, 2).add(torch.ones(1, 2, 2, dtype=torch.int64), rand(2, 2, 2))


def test_byte_counts_as_text() -> None:
    assert [parse_bytes(text) for text in (7, "4GB", "1.5 MiB", "10k", "2TiB")] == [7, 4 * 10**9, 1572864, 10**4, 2**41]
    for wrong in ("", "GB", "-1GB", 0, "1XB", True):
        with pytest.raises(ValueError, match=r"^memory: expected bytes > 0"):
            parse_bytes(wrong)
