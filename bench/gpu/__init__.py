"""``python -m bench gpu``: the kernels on the GPU at hand: are they right, do they keep their promises, how fast.

``command`` makes the list of jobs and reports; ``bench.workers`` runs jobs in processes of their own, so that a kernel
that crashes takes only its own row with it; ``correctness``, ``promises``, ``timing``, ``whole`` and ``bench.ceilings``
hold the jobs.
"""
