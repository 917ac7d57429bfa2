import io

import pytest

from ddpm_jax.runtime.progress import Progress, Throughput, format_duration, format_rate


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


LEFT = ["3:20", "2:55", "2:30", "2:05", "1:40", "1:15", "0:50", "0:25"]


def test_progress_of_images():
    clock, out = Clock(), io.StringIO()
    with Progress(5000, out=out, clock=clock) as progress:
        for done in range(500, 5001, 500):
            clock.now += 25
            progress.update(done)
    assert out.getvalue().splitlines() == [
        "500 / 5,000 images (10%)",
        *(
            f"{done:,} / 5,000 images ({done // 50}%) · 20.0 images/s · {left} left"
            for done, left in zip(range(1000, 5000, 500), LEFT, strict=True)
        ),
        "5,000 / 5,000 images (100%) · 20.0 images/s",
    ]


def test_a_title_names_the_pass():
    out = io.StringIO()
    with Progress(5, title="features of a.npz", out=out, clock=Clock()) as progress:
        progress.update(5)
    assert out.getvalue() == "features of a.npz: 5 / 5 images (100%)\n"


def test_a_pause_does_not_change_the_speed():
    clock = Clock()
    rate = Throughput(clock)
    rate.update(0)
    clock.now += 10
    with rate.pause():
        clock.now += 100
    rate.update(10)
    assert (rate.per_second(), rate.seconds_left(20)) == (1, 20)


def test_speed_is_unknown_at_first():
    clock = Clock()
    rate = Throughput(clock)
    assert rate.per_second() is None
    rate.update(3)
    rate.update(4)  # at the same time
    clock.now += 0.4
    rate.update(5)  # too soon to measure
    assert rate.per_second() is None
    assert rate.seconds_left(10) is None
    clock.now += 0.4
    rate.update(6)
    assert rate.per_second() == pytest.approx(3 / 0.8)


def test_speed_follows_the_recent_past():
    clock = Clock()
    rate = Throughput(clock, window=30)
    for done, interval in enumerate([0.1] * 1000 + [1.0] * 31):
        clock.now += interval
        rate.update(done)
    assert rate.per_second() == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("interval", [0.0005, 0.01, 1.0, 100.0])
def test_speed_is_exact_at_any_pace_and_few_points_are_kept(interval):
    clock = Clock()
    rate = Throughput(clock)
    for done in range(3000):
        clock.now += interval
        rate.update(done)
    assert rate.per_second() == pytest.approx(1 / interval, rel=1e-6)
    assert len(rate._points) <= 60


@pytest.mark.parametrize(
    ("speed", "text"),
    [
        (12345.6, "12,346 steps/s"),
        (123.4, "123 steps/s"),
        (99.94, "99.9 steps/s"),
        (3.21, "3.2 steps/s"),
        (0.364, "0.36 steps/s"),
        (0.05, "20.0 s/step"),
    ],
)
def test_speeds_are_readable(speed, text):
    assert format_rate(speed, "steps") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00"),
        (5.4, "0:05"),
        (65, "1:05"),
        (3599.6, "1:00:00"),
        (7384, "2:03:04"),
        (9e4, "1 day 1 h"),
        (9e5, "10 days 10 h"),
    ],
)
def test_durations_are_readable(seconds, text):
    assert format_duration(seconds) == text
