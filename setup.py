"""Declare the licence in the form that the installed setuptools knows; everything else is in pyproject.toml.

An SPDX expression (PEP 639) is refused there before setuptools 77, and what earlier ones take is refused from 2027 on.
"""

import setuptools

PEP_639 = int(setuptools.__version__.split(".")[0]) >= 77

setuptools.setup(**{"license_expression" if PEP_639 else "license": "Apache-2.0"})
