"""``python -m bench gpu``: check the kernels on the GPU at hand, and time them.

``command`` plans the jobs within a budget of seconds and reports; ``bench.workers`` runs them in processes of their
own, so that a kernel that crashes costs only its own row; ``correctness``, ``invariants``, ``sanitize``, ``counters``,
``timing``, ``whole`` and ``bench.roofline`` hold the jobs.
"""
