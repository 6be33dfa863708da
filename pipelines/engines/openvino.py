"""OpenVINO: the CPU's engine, in bf16 where the weights allow it and the processor computes it.

Converting a network takes seconds, compiling a converted one a fraction of that, so the converted
network is kept in the user's cache, named by a digest of all that it is made of: weights, the
network's configuration, our code and the libraries'.
"""

import hashlib
import os
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

# The converter reports its use to its maker over the network. Nothing leaves this box: where the
# package cannot be imported, it takes its own empty stand-in.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402
import openvino  # noqa: E402
import structlog  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import nn  # noqa: E402
from torch.jit._trace import TracerWarning  # noqa: E402

from pipelines.weights import Bundle, Precision  # noqa: E402

UNUSED_DAYS: Final = 30  # after which a kept network leaves the cache
LIBRARIES: Final = ("openvino", "torch", "monai")
KEPT: Final = (".bin", ".xml", ".sha256")
BYTES_A_VOXEL: Final = {Precision.BF16: 650, Precision.FP32: 1_250}  # measured

log = structlog.get_logger()


class OpenVinoEngine:
    """A network compiled for this machine's processor.

    Volumes come one at a time, and all cores share one. Slices come in batches, which the cores
    divide among themselves: then they need not wait for each other after every layer.
    """

    def __init__(self, model: openvino.Model, lowest: Precision, *, threads: int = 0) -> None:
        core = openvino.Core()
        of_slices = len(model.inputs[0].partial_shape) == 4
        options: dict[str, object] = {"PERFORMANCE_HINT": "THROUGHPUT" if of_slices else "LATENCY"}
        if lowest is Precision.FP32:
            options["INFERENCE_PRECISION_HINT"] = "f32"
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        compiled = core.compile_model(model, "CPU", options)
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        at_once = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._requests = [compiled.create_infer_request() for _ in range(at_once)]
        self.precision = Precision.BF16 if precision == "bf16" else Precision.FP32
        self._description = f"OpenVINO {version('openvino')} {precision} (cpu)"

    @property
    def description(self) -> str:
        return self._description

    @property
    def bytes_a_voxel(self) -> int:
        return BYTES_A_VOXEL[self.precision]

    def predict(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = np.array_split(batch, min(len(batch), len(self._requests)))
        working = self._requests[: len(parts)]
        for request, part in zip(working, parts, strict=True):
            request.start_async({0: part})
        for request in working:
            request.wait()
        # A request's own buffer is reused by the next call: hand out a copy.
        outputs = [request.get_output_tensor(0).data for request in working]
        return np.concatenate(outputs, dtype=np.float32)


def converted(bundle: Bundle) -> openvino.Model:
    """Return the bundle's network, ending in probabilities, from the cache when it is there.

    What lies in the cache is checked against its own checksums: a file that a power cut left short
    is made again, for it, not the bundle, is what computes the result. A cache that cannot be used
    costs the time of a conversion, nothing else.

    Raises:
        WeightsError: the network cannot be made of the bundle.
    """
    path = _cache() / f"{_key(bundle)}.xml"
    with suppress(OSError, RuntimeError):  # OpenVINO's errors are RuntimeErrors
        if _is_whole(path):
            model = openvino.Core().read_model(path)
            _note_use(path)
            return model
    model = _convert(bundle)
    try:
        _keep(model, path)
        _remove_unused(path.parent)
    except (OSError, RuntimeError) as error:
        log.warning("openvino.not_kept", folder=str(path.parent), error=type(error).__name__)
    return model


def _key(bundle: Bundle) -> str:
    """Return a digest of all that makes the graph, with which it changes."""
    parts = [bundle.digest, repr(bundle.config.network_config)]
    parts += [f"{library} {version(library)}" for library in LIBRARIES]
    parts += [source.read_text(encoding="utf-8") for source in _sources()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _sources() -> list[Path]:
    """Return the code that turns a bundle into a graph."""
    pipelines = Path(__file__).parent.parent
    networks = sorted((pipelines / "networks").glob("*.py"))
    return [Path(__file__), pipelines / "weights.py", *networks]


def _convert(bundle: Bundle) -> openvino.Model:
    dimensions, channels = bundle.config.dimensions, bundle.config.in_channels
    net = nn.Sequential(bundle.network(), bundle.config.activation()).eval()
    example = torch.zeros(1, channels, *[32] * dimensions)
    with warnings.catch_warnings(), torch.inference_mode():
        # The networks check that skip connections fit; inputs here are multiples of 16, so they do.
        warnings.simplefilter("ignore", category=TracerWarning)
        warnings.simplefilter("ignore", category=DeprecationWarning)
        return openvino.convert_model(
            net, example_input=example, input=[-1, channels, *[-1] * dimensions]
        )


def _keep(model: openvino.Model, path: Path) -> None:
    """Save the two files aside, then rename them; the checksums last."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        openvino.save_model(model, Path(aside) / path.name, compress_to_fp16=False)
        sums = Path(aside) / path.with_suffix(".sha256").name
        sums.write_text(_sums(Path(aside) / path.name))
        for suffix in KEPT:
            (Path(aside) / path.name).with_suffix(suffix).replace(path.with_suffix(suffix))


def _is_whole(path: Path) -> bool:
    return path.with_suffix(".sha256").read_bytes() == _sums(path).encode()


def _note_use(path: Path) -> None:
    with suppress(OSError):  # a cache that can only be read is a cache as well
        for suffix in KEPT:
            os.utime(path.with_suffix(suffix))


def _remove_unused(folder: Path) -> None:
    oldest = time.time() - UNUSED_DAYS * 86_400
    for path in folder.iterdir():
        if path.is_file() and path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)


def _sums(path: Path) -> str:
    files = (path.with_suffix(".bin"), path)
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in files)


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "chest-ct-appliance" / "openvino"
