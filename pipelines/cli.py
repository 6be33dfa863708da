"""`appliance analyse`, `phantom` and `train`: the science without a server.

The commands are looked up by name at every start of the console script, so nothing heavy is
imported until one of them runs.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pipelines.series import Candidate

ENGINES = ["auto", "torch", "openvino"]


@click.command()
@click.argument("source", metavar="INPUT", type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--engine", type=click.Choice(ENGINES), default="auto", show_default=True)
@click.option("--threads", default=0, show_default="all", help="Processor threads.")
@click.option("--weights", type=click.Path(exists=True, path_type=Path), help="Folder of models.")
def analyse(source: Path, out: Path, engine: str, threads: int, weights: Path | None) -> None:
    """Analyse a DICOM folder, a zip or a NIfTI file without any server.

    Writes analysis.json, lungs.nii.gz, lesions.nii.gz (in the input's own geometry) and
    contact_sheet.png to a new folder. Research use only, not for primary diagnosis.
    """
    from pipelines import analysis, presentation
    from pipelines.engines.choice import EngineChoice
    from pipelines.findings import whole_folder
    from pipelines.series import candidates

    try:
        with whole_folder(out) as staging:
            models = analysis.Models.open(weights, EngineChoice(engine), threads=threads)
            click.echo(f"engine     {models.engine}")
            volume, found = analysis.analyse_study(
                _told(candidates(source, threads=threads)),
                models,
                progress=lambda step, seconds, known: click.echo(
                    f"{step:10} {seconds:6.2f} s  {_known(known)}"
                ),
            )
            found.write(staging, volume)
            presentation.contact_sheet(volume, found).save(staging / "contact_sheet.png")
    except (PipelineError, OSError) as error:
        raise click.ClickException(str(error)) from error
    for refusal in found.refused_series:
        click.echo(f"not analysed: {refusal.reason}")
    for warning in found.warnings:
        click.echo(f"note: {warning}")
    verdict = "positive" if found.positive else "negative"
    click.echo(
        f"COVID-like: {verdict}, probability {found.probability:.3f} "
        f"(threshold {found.threshold:.3f}), {len(found.lesions)} lesions. Result in {out}"
    )


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Another seed is another patient.")
@click.option("--small", is_flag=True, help="A coarse chest, for tests.")
def phantom(out: Path, seed: int, small: bool) -> None:  # noqa: FBT001
    """Write a synthetic chest CT with known lesions as a DICOM series to the folder OUT."""
    from pipelines import phantom as world

    chest = world.small_chest(seed) if small else world.chest(seed)
    files = world.write_dicom(chest, out)
    click.echo(f"{len(files)} slices written to {out}")


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--data", required=True, type=click.Path(exists=True, path_type=Path), help="The data sets."
)
@click.option("--work", type=click.Path(path_type=Path), help="Folder of checkpoints and curves.")
@click.option("--threads", default=0, show_default="all", help="Processor threads.")
def train(config: Path, data: Path, work: Path | None, threads: int) -> None:
    """Train the model described by CONFIG, for example weights/lungs/training.toml.

    A training that was interrupted goes on where its last checkpoint left it. At the end the
    weights, their checksums and metrics.json are written beside CONFIG.
    """
    from pipelines.training.run import run

    try:
        run(config, data, work or Path(".train") / config.parent.name, threads=threads)
    except PipelineError as error:
        raise click.ClickException(str(error)) from error


def _told(candidates: "Iterable[Candidate]") -> "Iterator[Candidate]":
    """Say of each volume how long its reading took."""
    began = time.perf_counter()
    for volume, refused in candidates:
        click.echo(f"reading    {time.perf_counter() - began:6.2f} s  {volume.shape[0]} slices")
        yield volume, refused
        del volume  # the next one needs the memory
        began = time.perf_counter()


def _known(known: dict[str, object]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in known.items()
    )
