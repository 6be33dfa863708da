"""Time the automatic run on one study, per step and engine, with peak memory.

Each run is a process of its own, the two engines in turn, so that neither profits from the other's
warm memory; the median of the runs is printed. Usage: python -m bench.automatic_run INPUT [RUNS]
"""

import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ENGINES = ("openvino", "torch")
DEFAULT_RUNS = 3


def measure(source: Path, engine: str) -> dict[str, float]:
    """Return seconds per step and peak memory of one run in this process."""
    from pipelines.analysis import Models, analyse
    from pipelines.engines.choice import EngineChoice
    from pipelines.series import load_input

    began = time.perf_counter()
    volume, _ = load_input(source)
    reading = time.perf_counter() - began
    began = time.perf_counter()
    models = Models.open(None, EngineChoice(engine))
    opening = time.perf_counter() - began
    found = analyse(volume, models)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    steps = {"opening the models": opening, "reading": reading, **found.timings_s}
    automatic = sum(found.timings_s.values())
    return {**steps, "automatic run": automatic, "peak memory (GiB)": peak_kib / 2**20}


def main() -> None:
    """Run both engines in turn and print the medians."""
    source = Path(sys.argv[1])
    runs = int(sys.argv[2]) if len(sys.argv) > 2 else DEFAULT_RUNS
    if len(sys.argv) > 3:
        print(json.dumps(measure(source, sys.argv[3])))
        return
    results: dict[str, list[dict[str, float]]] = {engine: [] for engine in ENGINES}
    for run in range(runs):
        for engine in ENGINES:
            command = [sys.executable, "-m", "bench.automatic_run", str(source), "1", engine]
            out = subprocess.run(command, check=True, capture_output=True, text=True)
            results[engine].append(json.loads(out.stdout.splitlines()[-1]))
            print(f"run {run + 1} of {runs}: {engine} done", file=sys.stderr)
    print(f"{source.name}, {runs} runs each, medians; {platform.processor() or platform.machine()}")
    print(f"{'':24}" + "".join(f"{engine:>12}" for engine in ENGINES))
    for figure in results[ENGINES[0]][0]:
        medians = [statistics.median(r[figure] for r in results[e]) for e in ENGINES]
        print(f"{figure:24}" + "".join(f"{value:12.2f}" for value in medians))


if __name__ == "__main__":
    main()
