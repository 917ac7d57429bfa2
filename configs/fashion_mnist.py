"""Fashion-MNIST: 60,000 gray 28x28 photographs of garments, in ten classes; a model that a laptop can train.

Command:    python main.py --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist
Hardware:   a laptop's CPU, in hours; garments show within the first.
Expected:   no published DDPM uses this set. Loss 0.073 after 5,575 of the 30,000 steps (about two hours at 0.7 to 0.8
            steps/s on two busy CPU cores), when docs/images/fashion_mnist.png was drawn: garments, most of them clean.
"""

from configs import mnist


def get_config():
    """As for MNIST, over other images."""
    config = mnist.get_config()
    config.data.name = "fashion_mnist"
    config.data.random_flip = True  # a mirrored shirt is a shirt
    return config
