"""Inputs, models and files as people have them: each module names the class of inputs that it is about."""
