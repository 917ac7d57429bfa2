"""Files of a run are written through runtime/storage.py only, so that a workdir may be in a bucket."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "ddpm_jax"
METHODS = {"write_text", "write_bytes", "mkdir", "touch", "rename", "replace", "symlink_to", "hardlink_to", "absolute"}
OS = {"open", "replace", "rename", "mkdir", "makedirs", "remove", "unlink", "truncate", "link", "symlink"}
# What these do with files of this machine only; the paths of all other modules may be in a bucket.
LOCAL = {
    "runtime/storage.py": "the two kinds of paths",
    "runtime/object_path.py": "the two kinds of paths",
    "runtime/atomic.py": "the temporary file of an atomic write",
    "runtime/run_lock.py": "the lock of a workdir that is not in a bucket",
    "runtime/object_lock.py": "the file that shows that a process of this machine is running",
    "config_file.py": "config files are programs",
    "data/folder_manifest.py": "the manifests of this machine",
    "data/local_copy.py": "copies on this machine",
    "data/prepared.py": "reads a local copy",
    "data/prepare.py": "writes array_record files",
    "data/prepare_target.py": "writes array_record files",
    "data/tfds.py": "the lock of a set that is downloaded",
    "metrics/download.py": "the cache of downloads",
    "metrics/inception_weights.py": "the cache of downloads",
}


def writes(tree: ast.AST) -> set[str]:
    """The calls in a module that write, create or rename files, or make a path absolute as if it were local."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id == "open":
            found.add("open")
        if not isinstance(function, ast.Attribute):
            continue
        if isinstance(function.value, ast.Name) and function.value.id == "os":
            found |= {f"os.{function.attr}"} if function.attr in OS else set()
        elif function.attr == "absolute":
            found |= {"absolute"} if not node.args else set()
        elif function.attr in METHODS - {"replace", "write_text"}:
            found.add(function.attr)
        elif function.attr == "write_text" and len(node.args) < 3:  # the tracker's method has more arguments
            found.add("write_text")
        elif function.attr == "replace" and len(node.args) == 1 and not node.keywords:  # not str.replace
            found.add("replace")
        elif function.attr == "open" and node.args and isinstance(node.args[0], ast.Constant):
            found |= {"open"} if set(str(node.args[0].value)) & set("wax+") and "npy" not in ast.dump(node) else set()
    return found


def test_only_the_storage_module_writes_files():
    calls = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        name = file.relative_to(PACKAGE).as_posix()
        if found := writes(ast.parse(file.read_text())):
            calls[name] = found
    assert {name: found for name, found in calls.items() if name not in LOCAL} == {}
    assert set(LOCAL) - set(calls) == set(), "these no longer write: remove them from the list"


def test_the_scan_finds_writes():
    for line in (
        "open('x', 'w')",
        "p.open('wb')",
        "(folder / 'x').write_text('')",
        "p.write_bytes(b'')",
        "os.replace(a, b)",
        "p.mkdir(parents=True)",
        "pathlib.Path(p).absolute()",
        "p.replace(q)",
    ):
        assert writes(ast.parse(line)), line
    assert not writes(ast.parse("'a'.replace('a', 'b'); p.open('rb'); dataclasses.replace(x, a=1); f.write(b'')"))
