"""Use ssa_fast from other frameworks."""
