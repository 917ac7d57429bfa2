"""Rules of the architecture: imports point down, only some modules read a config, files are short and documented."""

import ast
import pathlib

import pytest

from ddpm_jax.configs import defaults

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "ddpm_jax"
LAYERS = {
    "__main__": 5,
    "app": 4.9,  # cli/app.py imports it by name
    "api": 4.8,
    "cli": 4,
    "evaluation_config": 3.7,
    "explorer_config": 3.7,
    "explorer_identity": 3.6,
    "explorer_rows": 3.65,
    "explorer_sizes": 3.65,
    "explorer_network": 3.68,
    "visualize_config": 3.8,
    "config_validation": 3.5,
    "network_check": 3.5,
    "training_config": 3.8,
    "config_file": 3.5,
    "user_messages": 2.2,
    "choices": 2.3,
    "compiler_config": 2.5,
    "compilation_cache": 2.5,
    "sampling_config": 3.5,
    "animation_config": 3.6,
    "build": 3,
    "data_config": 2.5,
    "shared_first_reading": 2.6,
    "condition_config": 2.7,
    "sampling_conditions": 3.2,
    "training": 2,
    "evaluation": 2.5,
    "interop": 2.5,
    "planning": 3.3,
    "samplers": 2,
    "diffusion": 1,
    "models": 1,
    "cpu": 1,
    "data": 1,
    "metrics": 1,
    "runtime": 1,
    "plotting": 1,
    "configs": 0,
}
SHARED = (
    "ddpm_jax.runtime.errors",
    "ddpm_jax.runtime.atomic",
    "ddpm_jax.runtime.storage",
    "ddpm_jax.runtime.object_path",
    "ddpm_jax.runtime.registry",
    "ddpm_jax.runtime.custom_parts",
    "ddpm_jax.runtime.progress",
)  # below all layers
CONFIG_READERS = (
    "animation_config",
    "api",
    "app",
    "cli",
    "config_validation",
    "network_check",
    "condition_config",
    "sampling_conditions",
    "shared_first_reading",
    "build",
    "choices",
    "compiler_config",
    "config_file",
    "data_config",
    "evaluation_config",
    "explorer_config",
    "explorer_identity",
    "explorer_network",
    "explorer_rows",
    "explorer_sizes",
    "visualize_config",
    "planning",
    "sampling_config",
    "training_config",
)
MODES = (
    "train",
    "sample",
    "evaluate",
    "score",
    "compare",
    "export",
    "compute_stats",
    "visualize",
    "inpaint",
    "image_to_image",
    "interpolate",
    "import",
    "plan",
    "prepare",
    "app",
)
SECTIONS = {name: set(section) for name, section in defaults.get_config().items() if hasattr(section, "items")}
# Libraries that only one module may import; all others use that module.
HOMES = {
    "orbax": {"runtime/checkpoint.py"},
    "etils": {"runtime/checkpoint.py", "runtime/object_path.py"},
    "fsspec": {"runtime/object_path.py"},
    "tensorflow_datasets": {"data/tfds.py"},
    "flax.linen": {
        "build.py",
        "metrics/inception.py",
        *(
            f"models/{name}.py"
            for name in (
                "__init__",
                "group_norm",
                "hashed_dropout",
                "layers",
                "tpu_layers",
                "training_layers",
                "unet",
            )
        ),
    },
    # Not part of JAX's stable API: `cpu.layer_functions` imports conv.py under a guard; the others take the public names of
    # jaxprs and of generators of random numbers.
    "jax.interpreters": {"cpu/conv.py"},
    "jax.extend": {"cpu/conv.py", "interop/onnx_model.py", "runtime/device_rng.py"},
    "ddpm_jax.cpu.conv": {"cpu/__init__.py"},
    "ddpm_jax.cpu": {"build.py", "compiler_config.py", "cpu/__init__.py", "evaluation_config.py", "cli/train.py"},
    "diffrax": {"evaluation/ode_likelihood.py"},
    "safetensors": {"metrics/inception_weights.py", "interop/weights_file.py", "interop/export_diffusers.py"},
    "ml_collections": {
        "animation_config.py",
        "app/controls.py",
        "app/model.py",
        "app/python_call.py",
        "app/start_images.py",
        "api/functions.py",
        "api/run.py",
        "api/loaded_run.py",
        "api/arguments.py",
        "build.py",
        "choices.py",
        "compiler_config.py",
        "data_config.py",
        "shared_first_reading.py",
        "condition_config.py",
        "sampling_conditions.py",
        "config_validation.py",
        "network_check.py",
        "config_file.py",
        "evaluation_config.py",
        "explorer_config.py",
        "explorer_identity.py",
        "explorer_network.py",
        "explorer_rows.py",
        "explorer_sizes.py",
        "visualize_config.py",
        "sampling_config.py",
        "training_config.py",
        "planning/compile_step.py",
        "cli/common.py",
        "cli/main.py",
        *(f"cli/{mode}.py" for mode in MODES if mode not in ("compare", "prepare")),  # which read no config
    },
    "gradio": {"app/components.py", "app/events.py", "app/page.py", "app/server.py"},
    "tensorboard": {"runtime/trackers/tensorboard.py"},
    "wandb": {"runtime/trackers/wandb.py"},
    "tensorflow": set(),  # takes five seconds to import, and the memory of GPUs
    "matplotlib": {"plotting/bars.py", "plotting/charts.py", "plotting/filmstrip.py"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def package_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(file: pathlib.Path) -> set[str]:
    """Full names of all imports of a file, at any depth: modules, and names from modules."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the layer that they go to"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def upward(own: str, imported: set[str]) -> list[str]:
    """Imports that do not point down: of a higher layer, or of another package of the same layer."""
    wrong = []
    for name in imported:
        if not name.startswith("ddpm_jax.") or name.startswith(SHARED):
            continue
        other = package_of(name)
        if other != own and LAYERS[other] >= LAYERS[own]:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_down(file):
    own = file.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        public = ("importlib", "typing", "ddpm_jax.api")  # the latter for type checkers
        assert {name for name in imports(file) if not name.startswith(public)} == set()
        return
    assert own in LAYERS, f"{own} has no layer: give it one here and in CONTRIBUTING.md"
    assert not upward(own, imports(file))


def test_the_import_check_works():
    assert upward("diffusion", {"ddpm_jax.models.unet.UNet"})
    assert upward("samplers", {"ddpm_jax.build.build_model"})
    assert not upward(
        "samplers", {"ddpm_jax.diffusion.gaussian", "ddpm_jax.samplers.ddim", "ddpm_jax.runtime.errors.InvalidArgumentError"}
    )


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_the_command_line_raises_its_errors(file):
    """The library raises ValueError, OSError or RuntimeError, so that callers need no class of this program."""
    own = file.relative_to(PACKAGE).with_suffix("").parts[0]
    if own not in CONFIG_READERS and own != "user_messages":
        assert not {name for name in imports(file) if name.endswith((".UserError", ".UsageError"))}


@pytest.mark.parametrize("library", HOMES)
def test_libraries_are_imported_by_one_module(library):
    users = {
        file.relative_to(PACKAGE).as_posix()
        for file in FILES
        if any((name + ".").startswith(library + ".") for name in imports(file))
    }
    assert users == HOMES[library]


def config_reads(source: str) -> list[str]:
    """The config accesses of a module: `config.x`, or `any.section.field` with names of configs/defaults.py."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id == "ConfigDict":
            found.append(node.id)
        if not isinstance(node, ast.Attribute):
            continue
        if isinstance(node.value, ast.Name) and node.value.id in ("config", "cfg") and node.attr not in ("items", "get"):
            found.append(ast.unparse(node))  # `items` and `get`: of the dictionary in a workdir
        inner = node.value
        if isinstance(inner, ast.Attribute) and node.attr in SECTIONS.get(inner.attr, ()):
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_modules_above_the_library_read_a_config(file):
    if file.relative_to(PACKAGE).with_suffix("").parts[0] not in CONFIG_READERS:
        assert not config_reads(file.read_text())


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("def f(config): return config.seed", True),
        ("def f(config: ConfigDict): pass", True),
        ("def f(run): return run.sampling.num_steps", True),
        ("jax.config.update('x', 1)", False),
        ("def f(config: dict): return config.items()", False),
        ("def f(self): return self.sampling.mean()", False),
    ],
)
def test_the_config_check_works(source, read):
    assert bool(config_reads(source)) == read


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_are_short_documented_and_have_unique_names(file):
    """A program cannot check whether a file has one idea; these are proxies."""
    text = file.read_text()
    assert len(text.splitlines()) <= 350
    summary = (ast.get_docstring(ast.parse(text)) or "").partition("\n\n")[0]
    assert summary.endswith((".", ":", "?")), "the module's docstring begins with a sentence that describes it"
    if file != PACKAGE / "cli" / "common.py":
        assert not {"utils", "util", "helpers", "helper", "misc", "common", "tools"} & set(file.stem.split("_"))


def test_cli_has_one_file_for_each_mode_and_what_they_share():
    from ddpm_jax.cli import modes

    assert set(modes.MODES) == set(MODES)
    assert {file.stem for file in (PACKAGE / "cli").glob("*.py")} == {*MODES, "main", "modes", "common", "__init__"}
    for mode in MODES:
        others = {f"ddpm_jax.cli.{other}" for other in MODES if other != mode}
        assert not others & imports(PACKAGE / "cli" / f"{mode}.py"), "a mode imports another mode: share it in common.py"
