"""What the tests of this folder share lies in `exact_denoisers.py`, beside them."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
