"""Tile tables: the entry nearest to a stage, the table of a GPU, and errors that name the file."""

from __future__ import annotations

import json
import warnings

import pytest

from ssa_fast.kernels.config import Apply, Full, Gather, Prepare, Resident, Symmetric
from ssa_fast.ops import tile_tables
from ssa_fast.ops.gpu_info import INTERPRETER, Gpu

TILES = {
    "gather": dict(block_l=32, rows=32, num_warps=8, num_stages=1),
    "apply": dict(block_l=64, block_c=64, rows=32, num_warps=4, num_stages=2),
    "prepare": dict(block_l=64, block_c=64, num_warps=4),
    "resident": dict(block_i=64, block_j=64, block_c=32, rows=32, num_warps=4, num_stages=2),
    "full": dict(block_i=64, block_j=64, block_c=64, rows=32, num_warps=4, num_stages=3),
    "symmetric": dict(block=128, block_c=64, bands=2, chunk=8, rows=32, num_warps=8, num_stages=3),
}
KINDS = {
    "gather": Gather,
    "apply": Apply,
    "prepare": Prepare,
    "resident": Resident,
    "full": Full,
    "symmetric": Symmetric,
}
NOBODYS = Gpu("Nobody's GPU", "sm_90", num_sms=100)


def entry(kernel="prepare", C=256, L=1024, K=20, tiles=(), **other):
    kind = other.get("form", kernel)
    return dict(kernel=kernel, C=C, L=L, K=K, config=TILES[kind] | dict(tiles), why="a test", **other)


def table(*entries, gpu="Nobody's GPU", arch="sm_90"):
    versions = {"triton": "3.9.0"}
    return dict(gpu=gpu, arch=arch, source="measured by a test", versions=versions, entries=list(entries))


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    """Use an empty folder for the user's own tables, and clear the caches."""
    monkeypatch.setenv("SSA_FAST_CONFIGS", str(tmp_path))
    tile_tables._config.cache_clear()
    tile_tables._warn_once.cache_clear()
    yield tmp_path
    tile_tables._config.cache_clear()
    tile_tables._warn_once.cache_clear()


def ask(kernel="prepare", gpu=NOBODYS, C=256, L=1024, K=20, dtype="float16", precision="default", phi=None):
    return tile_tables.config(kernel, gpu=gpu, C=C, L=L, K=K, dtype=dtype, precision=precision, phi=phi)


def store(directory, *entries, name="nobody-s-gpu"):
    tile_tables.write(table(*entries), directory / f"{name}.json")


@pytest.mark.parametrize(
    ("sizes", "block_l"),
    [
        (dict(C=256, L=1024), 1),
        (dict(C=300, L=900), 1),
        (dict(C=256, L=3000), 2),  # their geometric mean is 2896
        (dict(C=2048, L=1024), 3),
        (dict(C=720, L=1024), 1),  # below and above the geometric mean of 256 and 2048, not their middle
        (dict(C=730, L=1024), 3),
        (dict(C=256, L=1024, K=1000), 4),
    ],
)
def test_the_nearest_entry_is_the_one_in_log2(directory, sizes, block_l):
    store(
        directory,
        entry(tiles=dict(block_l=1)),
        entry(L=8192, tiles=dict(block_l=2)),
        entry(C=2048, tiles=dict(block_l=3)),
        entry(K=500, tiles=dict(block_l=4)),
    )
    assert ask(**sizes).block_l == block_l


def test_the_first_of_equally_near_entries_is_taken(directory):
    store(directory, entry(C=128, tiles=dict(block_l=1)), entry(C=512, tiles=dict(block_l=2)))
    assert ask(C=256).block_l == 1


def test_a_bound_comes_before_nearness(directory):
    store(
        directory,
        entry(C=512, tiles=dict(block_l=1), max_C=512),
        entry(C=2048, tiles=dict(block_l=2), min_L=64, max_L=4096),
        entry(C=4096, tiles=dict(block_l=3)),
    )
    assert [ask(C=C).block_l for C in (512, 513, 600)] == [1, 2, 2]
    assert [ask(C=600, L=L).block_l for L in (63, 64, 4096, 4097)] == [3, 2, 2, 3]


def test_dtypes_of_one_size_stand_for_each_other(directory):
    store(directory, entry(dtype="float16", tiles=dict(block_l=1)), entry(dtype="float32", C=8, tiles=dict(block_l=2)))
    assert [ask(dtype=dtype).block_l for dtype in ("float16", "bfloat16", "float32")] == [1, 1, 2]


def test_an_entry_with_a_precision_serves_that_alone(directory):
    store(directory, entry(precision="high", tiles=dict(block_l=1)), entry(C=8, tiles=dict(block_l=2)))
    assert [ask(precision=precision).block_l for precision in ("high", "default")] == [1, 2]


def test_an_entry_with_a_phi_serves_that_alone(directory):
    store(directory, entry(phi="exp", tiles=dict(block_l=1)), entry(C=8, tiles=dict(block_l=2)))
    assert [ask(phi=phi).block_l for phi in ("exp", "relu", None)] == [1, 2, 2]


def test_tiled_is_full_or_symmetric_as_the_entry_says(directory):
    store(directory, entry("tiled", L=1024, form="full"), entry("tiled", L=65536, form="symmetric"))
    assert ask("tiled", L=1024) == Full(**TILES["full"])
    assert ask("tiled", L=65536) == Symmetric(**TILES["symmetric"])


def test_a_gpu_without_a_table_warns_once_and_names_the_command():
    with pytest.warns(UserWarning, match=r"Nobody's GPU.*python -m bench tune"):
        ask("gather")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask("apply", C=99)
        ask("gather")
    with pytest.warns(UserWarning, match="Another"):
        ask("gather", gpu=Gpu("Another GPU", "sm_80", num_sms=100))


def test_the_interpreter_takes_a_default_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ask("gather", gpu=INTERPRETER)


def test_a_measured_table_silences_the_warning_and_leaves_the_other_kernels_to_the_default(directory):
    store(directory, entry("gather", tiles=dict(block_l=1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ask("gather").block_l == 1
        assert isinstance(ask("resident"), Resident)


def test_the_users_table_comes_before_the_shipped_one(directory, monkeypatch):
    shipped = directory / "shipped"
    monkeypatch.setattr(tile_tables, "SHIPPED", shipped)
    store(shipped, entry(tiles=dict(block_l=1)))
    assert ask().block_l == 1
    store(directory, entry(tiles=dict(block_l=2)))
    assert ask().block_l == 2, "written after the first question"


@pytest.mark.parametrize(
    ("arch", "whose"),
    [("sm_86", "sm_86"), ("sm_89", "sm_89"), ("sm_103", "sm_100"), ("sm_121", "sm_120"), ("gfx950", "gfx950")],
)
@pytest.mark.filterwarnings("ignore:no tiles were measured")
def test_architectures_take_the_table_that_was_compiled_for_them(directory, monkeypatch, arch, whose):
    monkeypatch.setattr(tile_tables, "SHIPPED", directory / "shipped")
    for number, name in enumerate(sorted(set(tile_tables.TABLES.values()))):
        store(directory / "shipped", entry(tiles=dict(block_l=number + 1)), name=name)
    assert ask(gpu=Gpu("any", arch, 1)).block_l == sorted(set(tile_tables.TABLES.values())).index(whose) + 1


@pytest.mark.parametrize("arch", ["sm_75", "sm_70", "gfx1100", "gfx90a"])
def test_other_architectures_are_refused_with_a_reason(arch):
    gpu = Gpu("Some GPU", arch, 1)
    (reason,) = tile_tables.not_supported_reasons(gpu)
    assert arch in reason
    assert "Some GPU" in reason
    with pytest.raises(ValueError, match=arch):
        ask(gpu=gpu)


def test_no_entry_that_serves_is_an_error_that_names_the_stage(directory, monkeypatch):
    monkeypatch.setattr(tile_tables, "SHIPPED", directory / "none")
    store(directory, entry("gather", max_C=512))
    with pytest.raises(ValueError, match=r"'gather' for C=600, L=1024, K=20, float16.*Nobody's GPU"):
        ask("gather", C=600)


def test_what_is_written_is_read(directory):
    written = table(entry("gather", max_C=256), entry("tiled", form="full", precision="high", dtype="float32"))
    path = directory / "new" / "nobody-s-gpu.json"
    tile_tables.write(written, path)
    assert tile_tables.read(path) == written
    assert [path.name for path in path.parent.iterdir()] == ["nobody-s-gpu.json"]
    assert tile_tables.entries(written, path)[0].config == Gather(**TILES["gather"])


def test_a_table_that_is_not_in_order_is_not_written(directory):
    path = directory / "nobody-s-gpu.json"
    store(directory, entry())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"nobody-s-gpu\.json: entries"):
        tile_tables.write(table(entry(L=0)), path)
    assert path.read_bytes() == before
    assert list(directory.iterdir()) == [path]


WRONG = {
    "gpu: expected a string": dict(gpu=None),
    "versions: expected an object": dict(versions="3.9.0"),
    "entries: expected a list": dict(entries={}),
    r"entries\[1\].kernel: expected one of": dict(entries=[entry(), entry() | dict(kernel="scatter")]),
    r"entries\[0\].kernel: .* got None": dict(entries=[3]),
    r"entries\[0\].form: expected one of full, symmetric, got None": dict(entries=[entry() | dict(kernel="tiled")]),
    r"entries\[0\].form: not a field": dict(entries=[entry("gather") | dict(form="full")]),
    r"entries\[0\].max_c: not a field": dict(entries=[entry(max_c=3)]),
    r"entries\[0\].L: .* got '1024'": dict(entries=[entry(L="1024")]),
    r"entries\[0\].max_C: .* got 0": dict(entries=[entry(max_C=0)]),
    r"entries\[0\].dtype: .* got 'half'": dict(entries=[entry(dtype="half")]),
    r"entries\[0\].precision: .* got 'low'": dict(entries=[entry(precision="low")]),
    r"entries\[0\].phi: .* got 'cosine'": dict(entries=[entry(phi="cosine")]),
    r"entries\[0\].config: expected an object": dict(entries=[entry() | dict(config=None)]),
    r"entries\[0\].config.num_warps: .* got True": dict(entries=[entry(tiles=dict(num_warps=True))]),
    r"entries\[0\].config.rows: not a field of Prepare": dict(entries=[entry(tiles=dict(rows=16))]),
    r"entries\[0\].config.block_l: .* got None": dict(entries=[entry() | dict(config={})]),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_table_is_an_error_that_names_file_and_field(directory, message):
    path = directory / "nobody-s-gpu.json"
    path.write_text(json.dumps(table(entry()) | WRONG[message]))
    with pytest.raises(ValueError, match=f"^{path}: {message}"):
        ask()


@pytest.mark.parametrize("text", ["", "[]", '{"gpu": '])
def test_a_file_that_is_no_table_is_an_error_that_names_it(directory, text):
    path = directory / "nobody-s-gpu.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}: .*expected"):
        ask()


def test_users_tables_lie_in_the_home_directory_unless_told(monkeypatch, tmp_path):
    monkeypatch.delenv("SSA_FAST_CONFIGS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tile_tables.user_directory() == tmp_path / ".cache" / "ssa_fast" / "configs"


def test_a_name_becomes_a_file_name():
    assert tile_tables.slug("NVIDIA H200") == "nvidia-h200"
    assert tile_tables.slug("AMD Instinct MI300X (OAM)") == "amd-instinct-mi300x-oam"


@pytest.mark.parametrize("path", sorted(tile_tables.SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_table_is_in_order(path):
    entries = tile_tables.entries(tile_tables.read(path), path)
    for each in entries:
        assert type(each.config) in KINDS.values()
        assert each.why
        sizes = dict(C=each.C, L=each.L, K=each.K)
        assert each.serves(sizes, each.dtype or "float16", each.precision or "default", each.phi), (
            "it does not serve itself"
        )


@pytest.mark.parametrize("arch", tile_tables.TABLES)
@pytest.mark.filterwarnings("ignore:no tiles were measured")
def test_every_architecture_has_tiles_for_every_stage(arch):
    gpu = Gpu(f"a GPU of {arch}", arch, num_sms=100)
    for C, L, K in ((3, 1, 1), (64, 49, 1000), (256, 16384, 20), (768, 196, 200), (1000, 3136, 5), (2048, 2**20, 20)):
        for kernel in tile_tables.KERNELS:
            for dtype in tile_tables.ITEMSIZES:
                for precision in tile_tables.PRECISIONS:
                    assert ask(kernel, gpu, C, L, K, dtype, precision)
