"""Reads the pages of --mode=visualize with format html."""

import base64
import json
import re

import numpy as np


def data_of(file):
    """The embedded data with its arrays."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', file.read_text(), re.DOTALL)

    def decode(entry):
        if "base64" not in entry:
            return entry
        return np.frombuffer(base64.b64decode(entry["base64"]), entry["dtype"]).reshape(entry["shape"])

    return json.loads(text, object_hook=decode)
