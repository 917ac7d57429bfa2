"""Shapes and dtypes of trees of arrays, and how those of a checkpoint differ from those of a model."""

from typing import Any

import jax
import numpy as np

Shapes = dict[str, tuple]  # path -> (shape, dtype)


def shapes_of(tree: Any) -> Shapes:
    """Path -> (shape, dtype), with the same paths for dicts, tuples, lists and named tuples."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(leaf.shape), np.dtype(leaf.dtype).name)
        for path, leaf in leaves
    }


def differences(wanted: dict[str, Shapes], written: dict[str, Shapes], whole: bool) -> list[str]:
    """Descriptions of the differences between the fields of the model and the checkpoint."""
    differing = []
    for field in sorted(written.keys() | wanted.keys() if whole else wanted.keys()):
        if field not in written or field not in wanted:
            differing.append(f"{field} is missing from the {'model' if field in written else 'checkpoint'}")
            continue
        saved, expected = written[field], wanted[field]
        for path in sorted(saved.keys() | expected.keys()):
            if saved.get(path) != expected.get(path):
                differing.append(
                    f"{field}/{path} is {_show(saved.get(path))} in the checkpoint and {_show(expected.get(path))} here"
                )
    return differing


def _show(shape: tuple | None) -> str:
    return "missing" if shape is None else f"{shape[1]}{list(shape[0])}"
