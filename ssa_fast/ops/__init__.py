"""Polish one stage: choose a method and a backend, run it, fuse the stages."""
