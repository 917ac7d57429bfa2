"""The tests of this folder use `exact_denoisers.py` of the samplers' tests."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "samplers"))
