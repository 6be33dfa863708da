"""Several trained networks become one model that averages what they say.

    name = "U-Net++ and U-Net"
    version = "3.0.0"
    members = ["unetplusplus", "efficientnet_unet"]   # folders of trained models, beside this file
    decision = { threshold = 0.5, peak = 0.95, minimum_ml = 0.1 }

Networks that err differently err less together, a 2-D and a 3-D one above all (nnU-Net, Isensee
2021, doi:10.1038/s41592-020-01008-z). They must prepare a volume in the same way; each is computed
in its own precision.
"""

import dataclasses
from pathlib import Path
from typing import Final

from torch import nn

from pipelines.errors import PipelineError
from pipelines.limits import NAMES
from pipelines.training.recipe import read_toml
from pipelines.weights import ENSEMBLE, open_bundle, write_bundle

KEYS: Final = ("name", "version", "members", "decision")


def write_ensemble(settings: Path, out: Path) -> None:
    """Write the model that `settings` describes to the folder `out`.

    Raises:
        PipelineError: the settings or a member are at fault, or the members do not fit together.
    """
    tables = read_toml(settings)
    if set(tables) != set(KEYS):
        missing, unknown = sorted(set(KEYS) - set(tables)), sorted(set(tables) - set(KEYS))
        raise PipelineError(f"{settings}: missing keys {missing}, unknown keys {unknown}.")
    names = tables["members"]
    if not NAMES.holds(names) or len(names) < 2:
        raise PipelineError(
            f"{settings}: members must be a list of two or more different folders beside this file,"
            " each with a trained model."
        )
    bundles = [open_bundle(settings.parent / name) for name in names]
    first = bundles[0].config
    for name, bundle in zip(names, bundles, strict=True):
        for key in ("purpose", "preprocessing"):
            if getattr(bundle.config, key) != getattr(first, key):
                raise PipelineError(
                    f"{settings}: '{name}' has another {key} than '{names[0]}', so they do not see "
                    "the same: train them with the same one."
                )
    config = dataclasses.replace(
        first,
        name=tables["name"],
        version=tables["version"],
        network={
            "architecture": ENSEMBLE,
            "members": [
                {**bundle.config.network, "precision": bundle.config.precision}
                for bundle in bundles
            ],
        },
        decision=tables["decision"],
    )
    write_bundle(out, config, nn.ModuleList(bundle.network() for bundle in bundles))
