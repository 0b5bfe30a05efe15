"""Sky Computing's experiment: `python -m benchmarks.sky {simulated,measured} [--write]`.

`simulated` repeats it by the cost model: 160 layers of BERT-large, 63 workers. `measured` trains on
unlike hosts as far as one machine carries it, and needs root
(`benchmarks/common/emulated_hosts.py`).
"""

import argparse
from pathlib import Path

import torch

from benchmarks.common.documents import put
from benchmarks.sky import measured, published_code, simulated, table

RESULT = Path(__file__).parents[2] / "docs" / "sky.md"


def main() -> None:
    """Run one of the two, print its section, and with `--write` keep it in docs/."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sky", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    by_model = kinds.add_parser("simulated", help="by the cost model; some fifteen minutes")
    by_model.add_argument("--layers", type=int, default=published_code.LAYERS)
    by_model.add_argument("--workers", type=int, default=published_code.WORKERS)
    by_model.add_argument("--seconds", type=float, default=20.0, help="to plan each split")
    for_real = kinds.add_parser("measured", help="on emulated hosts; some ten minutes; root")
    for_real.add_argument("--layers", type=int, default=48)
    for_real.add_argument("--width", type=int, default=192)
    for_real.add_argument("--workers", type=int, nargs="+", default=[4, 8])
    for_real.add_argument(
        "--slowdowns", nargs="+", default=["whole"], choices=published_code.SLOWDOWNS
    )
    for_real.add_argument("--turns", type=int, default=3)
    for kind in (by_model, for_real):
        kind.add_argument("--write", action="store_true", help=f"write into {RESULT.name}")
    options = parser.parse_args()
    section = {"simulated": _simulated, "measured": _measured}[options.kind](options)
    print(section)
    if options.write:
        put(RESULT, f"## {options.kind.capitalize()}", section)


def _simulated(options: argparse.Namespace) -> str:
    torch.set_num_threads(1)
    graph = simulated.measured(options.layers)
    rows = list(simulated.rows(graph, options.workers, options.seconds))
    ideals = {
        kind: simulated.ideals(graph, kind, options.workers) for kind in published_code.SLOWDOWNS
    }
    return table.text(rows, ideals, (options.layers, options.workers))


def _measured(options: argparse.Namespace) -> str:
    size = (options.layers, options.width)
    rows = [
        measured.run(num, kind, size, options.turns)
        for num in options.workers
        for kind in options.slowdowns
    ]
    return measured.text(rows, size, options.turns)


if __name__ == "__main__":
    main()
