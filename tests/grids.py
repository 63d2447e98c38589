"""Write result files as a complete run of ``python -m bench`` does, with figures made up by formulas."""

from __future__ import annotations

import json

AMD = {"cpu": "AMD EPYC (family 25, model 17)", "cores": 2, "threads": 2, "memory_gib": 23.5, "torch": "2.15.0"}
H100 = AMD | {"gpu": "NVIDIA H100 80GB HBM3", "gpu_memory_gib": 79.2}
SIZES = {size: size * size // 16 for size in (224, 512, 1024, 2048, 4096)}  # pixels of a first stage by input size

# By provider: milliseconds at 128² pixels, the power of L with which they grow, and at which L and how it ends.
PEERS = {
    "dense PCM": (1500, 2, 65536, "out of memory"),
    "dense PCM compiled": (1250, 2, 65536, "out of memory"),
    "chunked PCM": (1000, 2, 262144, "over budget"),
    "FlexAttention": (2300, 2, 3136, "unsupported"),
    "xᵀx": (1400, 2, 262144, "out of memory"),
}
PROVIDERS = {
    "": {"auto": (8, 1, 2**30, ""), **PEERS, "algebra": (31, 1, 2**30, ""), "algebra compiled": (18, 1, 2**30, "")},
    "/signed": {"auto": (400, 2, 2**20, "over budget"), **PEERS},
}


def spread(p50, relative=0.03):
    return {"p20": p50 * (1 - relative), "p50": p50, "p80": p50 * (1 + relative)}


def row(problem, provider, L, **given):
    side = round(L**0.5)
    return {
        "problem": problem, "B": 1, "K": 20, "C": 256, "H": side, "W": side, "L": L, "dtype": "float32",
        "layout": "nchw", "values": "", "affinity": "relu", "provider": provider, "ours": provider.startswith("auto"),
        "variant": "", "status": "ok", "why": "", "error": 3.14e-7, "warm_ms": None, "cold_ms": None, "rounds": 7,
        "ratio": None, "peak_extra_mib": None, "share": None, "bound": "",
    } | given  # fmt: skip


def grid():
    """Yield the rows of a complete run."""
    for sign, providers in PROVIDERS.items():
        for size, L in SIZES.items():
            problem = f"resnet50/{size}/layer1{sign}"
            for provider, (ms, power, end, how) in providers.items():
                if end <= L:
                    yield row(problem, provider, L, status=how, why="as said")
                else:
                    found = spread(ms * (L / 2**14) ** power)
                    yield row(problem, provider, L, warm_ms=found, peak_extra_mib=ms * L / 2**24)
            yield row(problem, "auto again", L, warm_ms=spread(1.0), ratio=spread(1.0, 0.02), peak_extra_mib=1.0)
    yield row("resnet50/512/layer3", "auto", 1024, C=1024, warm_ms=spread(1.0))
    yield row("resnet50/512/layer1/centred", "auto", 16384, warm_ms=spread(1.0))
    yield row("resnet50/512/layer1/K1000", "auto", 16384, K=1000, warm_ms=spread(1.0))
    for size in (224, 512, 1024):
        for K, share in ((20, 0.02), (1000, 0.2)):
            yield from whole(size, K, share, lost=size == 1024 and K == 1000)


def whole(size, K, share, lost=False):
    problem = f"resnet50/{size}" + (f"/K{K}" if K != 20 else "")
    sizes = {"K": K, "C": 3, "H": size, "W": size}
    yield row(problem, "backbone", size * size, **sizes, warm_ms=spread(size * size / 500))
    found = {"warm_ms": spread(share * size * size / 500), "share_of_backbone": spread(share, 0.1)}
    yield row(
        problem, "polish and fuse", size * size, **sizes, ours=True, **({"status": "out of memory"} if lost else found)
    )


def save(path, rows, machine=AMD, commit="fa3f1c1", **settings):
    settings = {"suite": "curve", "rounds": 7, "limit_s": 120, "seed": 1, "device": "cpu"} | settings
    head = {"command": "python -m bench", "machine": machine | {"commit": commit, "date": "2026-11-25"}}
    path.write_text(json.dumps(head | {"ceilings": {}, "settings": settings, "rows": list(rows)}), encoding="utf-8")
    return path
