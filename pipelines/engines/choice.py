"""Which engine runs a bundle on this machine."""

from enum import StrEnum

import torch

from pipelines.engines.engine import Engine
from pipelines.engines.openvino import OpenVinoEngine, converted
from pipelines.engines.torch import TorchEngine, best_precision
from pipelines.weights import Bundle


class EngineChoice(StrEnum):
    """The values of the setting `analysis.engine`."""

    AUTO = "auto"
    TORCH = "torch"
    OPENVINO = "openvino"


def open_engine(bundle: Bundle, choice: EngineChoice, *, threads: int = 0) -> Engine:
    """Return the bundle's network, ready to run.

    `auto` is PyTorch on a GPU and OpenVINO on a CPU. `threads` are OpenVINO's, 0 for all
    processors; PyTorch's are a matter of the whole process.

    Raises:
        WeightsError: the network cannot be made of the bundle.
    """
    gpu = torch.cuda.is_available()
    if choice is EngineChoice.OPENVINO or (choice is EngineChoice.AUTO and not gpu):
        return OpenVinoEngine(converted(bundle), bundle.config.precision, threads=threads)
    device = torch.device("cuda" if gpu else "cpu")
    precision = best_precision(device, bundle.config.precision)
    return TorchEngine(bundle.network(), device, precision, bundle.config.activation())
