"""--mode=compare: a table and a chart of several runs. Needs neither a config nor JAX."""

from collections.abc import Sequence

from ddpm_jax.evaluation import comparison
from ddpm_jax.plotting import image_grid
from ddpm_jax.runtime import paths
from ddpm_jax.runtime.atomic import write_atomically

FOLDER = "comparison"  # in the current folder


def run(folders: Sequence[str], output: str) -> int:
    """Compare the runs in `folders`; print the table, and write table.md and curves.png to `output`, by default comparison/.

    Raises:
      ExpectedError: there is no run in a folder, or the output cannot be written.
    """
    runs = comparison.read_runs(folders)
    target = paths.output_path(output or FOLDER, "")
    paths.make_output_folder(target)
    text, picture = comparison.report(runs), comparison.draw_curves(runs)
    write_atomically(target / "table.md", text)
    print(text)
    if picture is not None:
        image_grid.save_png(target / "curves.png", picture)
    print(f"wrote table.md{'' if picture is None else ' and curves.png'} to {target}")
    return 0
