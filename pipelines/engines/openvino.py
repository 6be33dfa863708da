"""OpenVINO: the CPU's engine, in bf16 where the weights allow it and the processor computes it.

Converting a network takes seconds, compiling a converted one a fraction of that, so the converted
network is kept in the user's cache, named by a digest of the weights and of the network's
configuration, and by OpenVINO's version.
"""

import hashlib
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

# The converter reports its use to its maker over the network. Nothing leaves this box: where the
# package cannot be imported, it takes its own empty stand-in.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402
import openvino  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import nn  # noqa: E402
from torch.jit._trace import TracerWarning  # noqa: E402

from pipelines.weights import Bundle, Precision  # noqa: E402


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
        self._description = f"OpenVINO {_version()} {precision} (cpu)"

    @property
    def description(self) -> str:
        return self._description

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
    is made again, for it, not the bundle, is what computes the result.
    """
    # The same weights can be run by networks of several depths.
    network = json.dumps(bundle.config.network, sort_keys=True)
    name = hashlib.sha256(f"{bundle.digest} {network}".encode()).hexdigest()[:32]
    path = _cache() / f"{name}-{_version()}.xml"
    if not _is_whole(path):
        _keep(_convert(bundle), path)
    return openvino.Core().read_model(path)


def _convert(bundle: Bundle) -> openvino.Model:
    dimensions = int(bundle.config.network["dimensions"])
    channels = bundle.config.in_channels
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
        for suffix in (".bin", ".xml", ".sha256"):
            (Path(aside) / path.name).with_suffix(suffix).replace(path.with_suffix(suffix))


def _is_whole(path: Path) -> bool:
    try:
        return path.with_suffix(".sha256").read_text() == _sums(path)
    except FileNotFoundError:
        return False


def _sums(path: Path) -> str:
    files = (path.with_suffix(".bin"), path)
    return "".join(f"{hashlib.sha256(file.read_bytes()).hexdigest()}\n" for file in files)


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "chest-ct-appliance" / "openvino"


def _version() -> str:
    return str(openvino.__version__).split("-")[0]
