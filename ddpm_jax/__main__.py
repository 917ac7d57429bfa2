"""`python -m ddpm_jax`: the command line; see `cli.main`."""

from ddpm_jax.cli.main import run

if __name__ == "__main__":
    run()
