"""The command line from a clone of the repository; `ddpm-jax` and `python -m ddpm_jax` are the same program.

python main.py --config=configs/digits.py --workdir=runs/digits
"""

from ddpm_jax.cli.main import run

if __name__ == "__main__":
    run()
