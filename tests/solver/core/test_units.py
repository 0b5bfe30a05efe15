"""Sizes, rates and times as people write them."""

import pytest

from skyfx.solver.core.units import PLAIN, RATE, SIZE, TIME, Units, read_span

MBIT = 125_000.0


@pytest.mark.parametrize(
    ("text", "units", "read"),
    [
        ("2GiB:8GiB", SIZE, (2 * 2.0**30, 8 * 2.0**30)),
        ("2:8GiB", SIZE, (2 * 2.0**30, 8 * 2.0**30)),
        ("500MB", SIZE, (5e8, 5e8)),
        ("1kB:1KB", SIZE, (1e3, 1e3)),
        ("512 KiB : 1 MiB", SIZE, (2.0**19, 2.0**20)),
        ("100B", SIZE, (100.0, 100.0)),
        ("20Mbit:1Gbit", RATE, (20 * MBIT, 1000 * MBIT)),
        ("20Mbit/s", RATE, (20 * MBIT, 20 * MBIT)),
        ("1Gbps", RATE, (1000 * MBIT, 1000 * MBIT)),
        ("50MB/s", RATE, (5e7, 5e7)),
        ("1MiB/s:1GiB/s", RATE, (2.0**20, 2.0**30)),
        ("1ms:50ms", TIME, (0.001, 0.05)),
        ("200us", TIME, (2e-4, 2e-4)),
        ("0:1s", TIME, (0.0, 1.0)),
        ("0", TIME, (0.0, 0.0)),
        ("1:2", PLAIN, (1.0, 2.0)),
        ("1.5", PLAIN, (1.5, 1.5)),
        (".5:1e2", PLAIN, (0.5, 100.0)),
    ],
)
def test_what_people_write_is_read(text: str, units: Units, read: tuple[float, float]) -> None:
    assert read_span(text, units, "here") == pytest.approx(read, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "units", "said"),
    [
        ("8", SIZE, "found '8', expected a value such as 2GiB or 500MB"),
        ("8GiB:2GiB", SIZE, "found '8GiB:2GiB', expected the lower end first"),
        ("8:2GiB", SIZE, "found '8:2GiB', expected the lower end first"),
        ("2gib", SIZE, "found '2gib', expected a value such as 2GiB or 500MB"),
        ("20Mb", RATE, "found '20Mb', expected a value such as 20Mbit, 1Gbit or 50MB/s"),
        ("5", TIME, "found '5', expected a value such as 50ms or 200us"),
        ("2x", PLAIN, "found '2x', expected a value such as 2 or 1.5"),
        ("-1:2", PLAIN, "found '-1', expected a value such as 2 or 1.5"),
        ("nan", PLAIN, "found 'nan', expected a value such as 2 or 1.5"),
        ("1:", PLAIN, "found '', expected a value such as 2 or 1.5"),
        ("1:2:3", PLAIN, "found '2:3', expected a value such as 2 or 1.5"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, units: Units, said: str) -> None:
    with pytest.raises(ValueError, match="^here: " + said):
        read_span(text, units, "here")
