"""Triton kernels that polish one stage and fuse the stages; importing the package loads no Triton.

``prototypes`` is the linear-time method for non-negative features, ``tiled`` the quadratic one for any φ (``prepare``
lays out its operands, ``symmetric`` halves its work), ``resident`` the same in one launch for small stages, and
``fusion`` fuses the stages' CAMs. ``config`` defines tile shapes, ``configs/`` holds a table of them per GPU, and
``python -m bench aot`` compiles everything for GPUs that need not be present.
"""
