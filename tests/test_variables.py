"""docs/pods.md names each variable and option of JAX and XLA that the program sets or reads."""

import ast
import pathlib
import re

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "ddpm_jax"
PREFIXES = "JAX|XLA|LIBTPU|TPU|TF|EPATH|ALLOW|MEGASCALE|SLURM|OMPI|KUBERNETES|JOB|GCE|CUDA|NVIDIA|NCCL"
VARIABLE = re.compile(rf"({PREFIXES})_\w*")
OPTION = re.compile(r"-*(xla_\w+)(=.*)?")


def names_in(source):
    """Variables and options in the constants of a program: environment, `jax.config.update`, and options of the compiler."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if VARIABLE.fullmatch(node.value):
                found.add(node.value)
            elif option := OPTION.fullmatch(node.value):
                found.add(option[1])
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("jax.config.update", "config.update"):
            (name, _) = node.args
            if isinstance(name, ast.Constant):
                found.add(name.value)
    return found


def test_the_search_finds_each_kind():
    program = 'import os, jax\nos.environ["XLA_B"] = "1"\nos.environ["HOME"] = "1"\njax.config.update("jax_x", 1)\n'
    program += 'e = {"TPU_Y": "1"}\nf = {"xla_gpu_z": True}\ng = "--xla_cpu_w=3"\n"the text of XLA_FLAGS"\n'
    assert names_in(program) == {"XLA_B", "jax_x", "TPU_Y", "xla_gpu_z", "xla_cpu_w"}


def test_each_name_in_the_program_is_in_the_page_and_the_reverse(repository):
    page = (repository / "docs" / "pods.md").read_text()
    section = page.split("## Variables and settings of JAX and XLA\n")[1].split("\n## ")[0]
    used = set().union(*(names_in(file.read_text()) for file in PACKAGE.rglob("*.py")))
    used -= {"xla_force_host_platform_device_count"}  # read only: whether the user has chosen the devices
    assert len(used) > 20
    assert {name for name in used if name.rstrip("_") not in section} == set()
    options = set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))
    assert {name for name in options if name.islower()} - used == set()
