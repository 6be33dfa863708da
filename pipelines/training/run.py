"""One training from its TOML file to the shipped bundle."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

from pipelines.errors import PipelineError
from pipelines.training.lesions import LesionRecipe
from pipelines.training.loop import train
from pipelines.training.lungs import LungRecipe
from pipelines.training.recipe import Recipe, TrainingConfig
from pipelines.training.screening import ScreeningRecipe
from pipelines.weights import ModelConfig, write_bundle

METRICS_FILE: Final = "metrics.json"


def run(
    path: Path, data: Path, work: Path, *, threads: int = 0, say: Callable[[str], None] = print
) -> None:
    """Train, measure on the test groups, write the bundle beside the TOML file.

    Raises:
        PipelineError: the settings or the data are at fault.
    """
    config = TrainingConfig.load(path)
    if threads:
        torch.set_num_threads(threads)
    recipe = _recipe(config, data, work, say)
    torch.manual_seed(config.seed)
    model = ModelConfig(
        name=config.name,
        version=config.version,
        purpose=config.purpose,
        network=config.network,
        preprocessing=config.preprocessing,
        decision=config.decision,
        precision=config.precision,
    )
    net = model.network_with_random_weights()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train(config, recipe, net, work, device=device, say=say)
    say("Measuring on the test groups.")
    with torch.inference_mode():
        figures = recipe.report(net)
    if "threshold" in figures:  # chosen on the validation groups, shown on the test groups
        decision = {**model.decision, "threshold": round(figures["threshold"], 4)}
        model = dataclasses.replace(model, decision=decision)
    write_bundle(path.parent, model, net)
    (path.parent / METRICS_FILE).write_text(json.dumps(figures, indent=2) + "\n")
    say(json.dumps(figures))
    say(f"Written: {path.parent}. Bring the figures into its model_card.md.")


def _recipe(config: TrainingConfig, data: Path, work: Path, say: Callable[[str], None]) -> Recipe:
    match config.purpose:
        case "lungs":
            return LungRecipe(config, data)
        case "lesions":
            return LesionRecipe(config, data)
        case "screening":
            return ScreeningRecipe(config, data, work, say=say)
        case _:
            raise PipelineError(
                f"There is no training for '{config.purpose}'; known are lungs, lesions, screening."
            )
