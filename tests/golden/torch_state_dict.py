"""Generates torch_state_dict.npz: bytes of files written by PyTorch, and the arrays in them.

python tests/golden/torch_state_dict.py     # torch 2.13.0, numpy 2.4.6
"""

import io
import pathlib

import numpy as np
import torch


def main() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2, bias=False), torch.nn.BatchNorm2d(4, eps=0.001))
    state = network.state_dict()
    state["transposed"] = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).T
    state["tied"] = state["0.weight"][1:3]
    state["parameter"] = torch.nn.Parameter(torch.ones(2, dtype=torch.float16))
    golden = {f"array {name}": value.detach().numpy() for name, value in state.items()}
    for layout, zip_file in (("zip", True), ("legacy", False)):
        golden |= {f"{layout} of state": saved(state, zip_file), f"{layout} of module": saved(network, zip_file)}
    golden["zip of bfloat16"] = saved({"weight": torch.ones(2, dtype=torch.bfloat16)}, True)
    np.savez_compressed(pathlib.Path(__file__).with_suffix(".npz"), **golden)


def saved(thing, zip_file: bool) -> np.ndarray:
    stream = io.BytesIO()
    torch.save(thing, stream, _use_new_zipfile_serialization=zip_file)
    return np.frombuffer(stream.getvalue(), np.uint8)


if __name__ == "__main__":
    main()
