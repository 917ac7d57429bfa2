"""What the tests of this folder share lies in `torch_pickles.py`, beside them."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
