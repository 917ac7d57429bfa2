"""Lets the tests of this folder import `exact_denoisers.py` from the sampler tests."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "samplers"))
