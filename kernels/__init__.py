"""Triton kernels that polish one stage. Import a module to get at them: this package itself loads no Triton.

``prototypes`` is the linear-time way for non-negative features; ``tiled`` the quadratic one for any φ, with
``prepare`` before it; ``resident`` the same in one launch for small stages; ``fusion`` makes one CAM of the stages'.
``config`` holds the shapes of their tiles, ``configs/`` the tables of them per GPU, and
``python -m bench aot`` compiles everything for GPUs that are not there.
"""
