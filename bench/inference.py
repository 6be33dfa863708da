"""Time the automatic run: per step, beside its bare networks, beside MONAI's sliding window.

Usage: python -m bench.inference [STUDY] [--runs N]; without a study, a synthetic chest of 300
slices. Each measurement is a process of its own, the contenders in turn, so that none profits from
another's warm memory: one run cold, as after a start, then one that counts, as in a worker that
stays up. Medians are printed and kept in `bench/results/inference-cpu.json`, or `-gpu.json`. The
reference computes the same networks and weights with PyTorch in fp32, the lesion net by MONAI's
sliding window; on a GPU both run there. Where the true lesions are known, in the synthetic chest,
both are held against them.
"""

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from pipelines.analysis import PURPOSES, Models, analyse
from pipelines.engines.choice import EngineChoice
from pipelines.engines.engine import Engine
from pipelines.engines.torch import TorchEngine
from pipelines.evaluation.metrics import dice
from pipelines.inference import RIM, Model
from pipelines.phantom import chest
from pipelines.preprocessing import pad_to_multiple
from pipelines.series import load_input
from pipelines.volume import CTVolume
from pipelines.weights import Bundle, ModelConfig, Precision

PAPERS_PATCH = (128, 256, 256)
OVERLAP = 0.25
DEFAULT_RUNS = 3
GPU = torch.cuda.is_available()
RESULT = Path(__file__).parent / "results" / f"inference-{'gpu' if GPU else 'cpu'}.json"
ENGINES = ("torch",) if GPU else ("openvino", "torch")
REFERENCE = "reference"
MACHINE = "machine"
MATRIX = 8192 if GPU else 2048

RUN_S, COLD_S, PEAK_GIB = "automatic run", "first run of a process", "peak memory (GiB)"
NETWORKS_S, GFLOP = "bare networks", "GFLOP"
DICE = "Dice with the true lesions"
TARGETS = {
    RUN_S: 0.8 if GPU else 15.0,
    PEAK_GIB: 4.0,
    "run / bare networks": 1.25,
    "reference / run": 4.0,
}
Figures = dict[str, float]


class Recorded:
    """An engine that notes what shapes it was given."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.description = engine.description
        self.precision = engine.precision
        self.bytes_a_voxel = engine.bytes_a_voxel
        self.shapes: list[tuple[int, ...]] = []

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.shapes.append(batch.shape)
        return self.engine.predict(batch)


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that `action` takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def read(source: Path) -> CTVolume:
    """Return the volume of a study, or of the synthetic chest that `keep_chest` kept."""
    if source.suffix != ".npz":
        return load_input(source)[0]
    with np.load(source) as kept:
        return CTVolume.from_input(kept["hu"], kept["affine"], series_uid="synthetic chest")


def keep_chest(path: Path) -> None:
    """Paint the synthetic chest of 300 slices and its lesions into a file."""
    painted = chest(shape=(300, 512, 512), spacing=(1.0, 0.75, 0.75))
    volume = painted.volume
    truth = painted.lesions > 0
    np.savez(path, hu=volume.hu, affine=volume.affine[:, [2, 1, 0, 3]], lesions=truth)


def peak_gib() -> float:
    """Return the most memory that this process held.

    `ru_maxrss` would be that of the process which started it, if that was larger.
    """
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def measure_ours(source: Path, engine: str, lesions: Path) -> Figures:
    """Return seconds per step, peak memory and the bare networks; keep the mask of the lesions."""
    began = time.perf_counter()
    volume = read(source)
    reading = time.perf_counter() - began
    began = time.perf_counter()
    models = Models.open(None, EngineChoice(engine))
    opening = time.perf_counter() - began
    cold = sum(analyse(volume, models).timings_s.values())
    shipped: dict[str, Model] = {p: getattr(models, p) for p in PURPOSES}
    recorded = {
        purpose: Model(model.bundle, tuple(map(Recorded, model.engines)))
        for purpose, model in shipped.items()
    }
    found = analyse(volume, replace(models, **recorded))
    np.save(lesions, found.lesion_labels > 0)
    figures = {"opening the models": opening, "reading": reading, **found.timings_s}
    figures |= {COLD_S: cold, RUN_S: sum(found.timings_s.values()), PEAK_GIB: peak_gib()}
    for purpose in PURPOSES:
        figures[f"{purpose}, bare network"] = sum(map(bare_s, recorded[purpose].engines))
    figures[NETWORKS_S] = sum(figures[f"{purpose}, bare network"] for purpose in PURPOSES)
    figures[GFLOP] = sum(
        gflop(member, engine.shapes)
        for model in recorded.values()
        for member, engine in zip(model.bundle.members, model.engines, strict=True)
    )
    return figures


def bare_s(recorded: Recorded) -> float:
    """Return the seconds of the passes a run needed, alone."""
    rng = np.random.default_rng(0)
    batches = {shape: rng.random(shape, dtype=np.float32) for shape in set(recorded.shapes)}
    return sum(
        timed(lambda s=shape: recorded.engine.predict(batches[s])) for shape in recorded.shapes
    )


def gflop(bundle: Bundle, shapes: list[tuple[int, ...]]) -> float:
    """Return the floating-point operations of passes over `shapes`, in billions."""
    from torch.utils.flop_counter import FlopCounterMode

    net = bundle.network().eval().to("meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        for shape in shapes:
            net(torch.empty(shape, device="meta"))
    return counter.get_total_flops() / 1e9


def measure_reference(source: Path, lesions: Path) -> Figures:
    """Return the seconds of the same run with PyTorch in fp32 and MONAI's sliding window."""
    volume = read(source)
    device = torch.device("cuda" if GPU else "cpu")
    models = Models.open(None, EngineChoice.TORCH)
    in_fp32 = {
        purpose: Model(
            bundle,
            tuple(TorchEngine(one.network(), device, Precision.FP32) for one in bundle.members),
        )
        for purpose, bundle in ((p, getattr(models, p).bundle) for p in PURPOSES)
    }
    in_fp32["lesions"] = SlidingWindow(in_fp32["lesions"].bundle, in_fp32["lesions"].engines)
    models = replace(models, **in_fp32)
    cold = sum(analyse(volume, models).timings_s.values())
    found = analyse(volume, models)
    np.save(lesions, found.lesion_labels > 0)
    return {COLD_S: cold, RUN_S: sum(found.timings_s.values()), PEAK_GIB: peak_gib()}


class SlidingWindow(Model):
    """A segmentation model whose 3-D networks MONAI runs: patches that overlap, blended."""

    def ask(self, engine: TorchEngine, member: ModelConfig, image: np.ndarray) -> np.ndarray:
        if member.dimensions == 3:
            return blended(engine, image)
        return super().ask(engine, member, image)


def blended(engine: TorchEngine, image: np.ndarray) -> np.ndarray:
    """Return the probabilities (z, y, x) by MONAI's sliding window."""
    from monai.inferers import sliding_window_inference

    z, y, x = image.shape
    seen = pad_to_multiple(np.pad(image, ((0, 0), (RIM, RIM), (RIM, RIM))))
    # A patch no larger than the image, or MONAI fills it up with nothing and computes that too.
    patch = [min(lengths) for lengths in zip(PAPERS_PATCH, seen.shape, strict=True)]
    with torch.inference_mode():
        logits = sliding_window_inference(
            torch.from_numpy(seen)[None, None].to(engine.device),
            patch,
            sw_batch_size=1,
            predictor=engine.net,
            overlap=OVERLAP,
        )
    return torch.sigmoid(logits)[0, 0, :z, RIM : RIM + y, RIM : RIM + x].cpu().numpy()


def measure_machine() -> Figures:
    """Return the rate of a product of large matrices, GFLOP/s, in the networks' precisions."""
    rates = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        factor = torch.rand(MATRIX, MATRIX, dtype=dtype, device="cuda" if GPU else "cpu")

        def multiply(factor: torch.Tensor = factor) -> None:
            product = factor @ factor
            float(product[0, 0])  # waits for a GPU

        fastest_s = min(timed(multiply) for _ in range(8))
        rates[f"matrix peak {name} (GFLOP/s)"] = 2 * MATRIX**3 / fastest_s / 1e9
    return rates


def measured(source: Path, what: str, folder: Path) -> Figures:
    """Return the figures of one contender, measured in a fresh process."""
    command = [sys.executable, "-m", "bench.inference", str(source), "--one", what]
    done = subprocess.run(
        [*command, "--folder", str(folder)], check=True, stdout=subprocess.PIPE, text=True
    )
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def medians(runs: list[Figures]) -> Figures:
    """Return the median of each figure."""
    return {figure: statistics.median(run[figure] for run in runs) for figure in runs[0]}


def compare(source: Path, runs: int, folder: Path) -> dict[str, Figures]:
    """Return the medians of all contenders, and how they compare."""
    contenders = (*ENGINES, REFERENCE, MACHINE)
    results: dict[str, list[Figures]] = {contender: [] for contender in contenders}
    for run in range(runs):
        for contender in contenders:
            results[contender].append(measured(source, contender, folder))
            print(f"run {run + 1} of {runs}: {contender} done", file=sys.stderr)
    table = {contender: medians(figures) for contender, figures in results.items()}
    masks = {c: np.load(folder / f"{c}.npy") for c in (*ENGINES, REFERENCE)}
    if source.suffix == ".npz":
        truth = np.load(source)["lesions"]
        for contender, mask in masks.items():
            table[contender][DICE] = dice(mask, truth)
    for engine in ENGINES:
        row = table[engine]
        rate = row[GFLOP] / row[NETWORKS_S]
        row["run / bare networks"] = row[RUN_S] / row[NETWORKS_S]
        row["reference / run"] = table[REFERENCE][RUN_S] / row[RUN_S]
        row["Dice with the reference"] = dice(masks[engine], masks[REFERENCE])
        row["networks (GFLOP/s)"] = rate
        for peak, value in table[MACHINE].items():
            row[f"share of {peak.removesuffix(' (GFLOP/s)')}"] = rate / value
    return table


def machine() -> dict[str, str | int]:
    """Return what computed, and with which versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in cpuinfo.splitlines() if "model name" in line]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if GPU else "none",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "openvino", "monai")},
    }


def show(table: dict[str, Figures]) -> None:
    """Print one column for each contender."""
    columns = (*ENGINES, REFERENCE)
    print(f"{'':28}" + "".join(f"{column:>12}" for column in columns) + f"{'target':>12}")
    for figure in table[ENGINES[0]]:
        values = [f"{table[c][figure]:12.2f}" if figure in table[c] else " " * 12 for c in columns]
        target = f"{TARGETS[figure]:12.2f}" if figure in TARGETS else ""
        print(f"{figure:28}" + "".join(values) + target)
    for figure, value in table[MACHINE].items():
        print(f"{figure:28}{value:12.0f}")


def main() -> None:
    """Measure one contender for the process that asks, or all of them in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=DEFAULT_RUNS)
    parser.add_argument("--one", choices=(*ENGINES, REFERENCE, MACHINE), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        kept = asked.folder / f"{asked.one}.npy"
        match asked.one:
            case "machine":
                figures = measure_machine()
            case "reference":
                figures = measure_reference(asked.study, kept)
            case engine:
                figures = measure_ours(asked.study, engine, kept)
        print(json.dumps(figures))
        return
    with tempfile.TemporaryDirectory() as folder:
        source = asked.study or Path(folder) / "chest.npz"
        if asked.study is None:
            keep_chest(source)
        volume = read(source)
        study = {"name": source.name, "shape": volume.shape, "spacing_mm": volume.spacing}
        del volume
        table = compare(source, asked.runs, Path(folder))
    today = dt.datetime.now(tz=dt.UTC).date().isoformat()
    about = {"date": today, "runs": asked.runs, "study": study, "machine": machine()}
    RESULT.write_text(json.dumps({**about, "medians": table}, indent=2) + "\n")
    print(json.dumps(about))
    show(table)


if __name__ == "__main__":
    main()
