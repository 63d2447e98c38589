"""Check an installed package, without its tests: the operator, its kernels' files, a network on an image, the command.

The release workflow runs it in an environment that has the built wheel with the extra ``photos``, and no checkout.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import torch

import ssa_fast
import ssa_fast.kernels
from ssa_fast.models import zoo

cam, feats = torch.rand(1, 2, 7, 7), torch.rand(1, 16, 14, 14)
expected = ssa_fast.polish(cam, feats, backend="reference")
torch.testing.assert_close(ssa_fast.polish(cam, feats), expected, rtol=1e-4, atol=1e-5)
assert (resources.files("ssa_fast.kernels") / "configs/sm_90.json").is_file()

network = zoo.load("efficientnet_lite0")
result = ssa_fast.SSA(network.model)(torch.rand(1, 3, 224, 224), classes="top2")
assert result.cams.shape == (1, 2, 224, 224)
assert 0 <= result.cams.min() <= result.cams.max() <= 1

assert ssa_fast.overlay(torch.rand(3, 224, 224), result.cams[0, 0]).shape == (3, 224, 224)

program = Path(sys.executable).with_name("ssa-fast")
said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
assert said.strip() == f"ssa-fast {ssa_fast.__version__}", said
print(f"ssa_fast {ssa_fast.__version__} in {Path(ssa_fast.__file__).parent} works")
