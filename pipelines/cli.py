"""The science without a server: `appliance analyse`, `prepare`, `train`, `select`, `evaluate`.

The commands are looked up by name at every start of the console script, so nothing heavy is
imported until one of them runs.
"""

import errno
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.errors import PipelineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pipelines.findings import Analysis
    from pipelines.series import Candidate

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OUTPUTS = "appliance.outputs"
"""Entry points that write an analysis in another form: (analysis, source, new folder) → None."""

of_sets = click.option(
    "--sets", required=True, type=click.Path(exists=True, path_type=Path), help="The manifests."
)
with_engine = click.option(
    "--engine",
    type=click.Choice(["auto", "torch", "openvino"]),
    default="auto",
    show_default=True,
)


def _print_keys(context: click.Context, _: click.Parameter, wanted: bool) -> None:  # noqa: FBT001
    """Print what stands in the file that a command reads, and end."""
    if not wanted:
        return
    if context.info_name == "train":
        from pipelines.training.recipe import reference

        click.echo(reference())
    else:
        from pipelines.training import select as module

        click.echo(module.__doc__)
    context.exit()


with_keys = click.option(
    "--keys",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_keys,
    help="Print every key of the file with its meaning, and end.",
)
with_threads = click.option("--threads", default=0, show_default="all", help="Processor threads.")


@click.command()
@click.argument("source", metavar="INPUT", type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@with_engine
@with_threads
@click.option("--weights", type=click.Path(exists=True, path_type=Path), help="Folder of models.")
@click.option("--second-opinion", is_flag=True, help="Also say which kind of pneumonia it looks.")
@click.option("--heat-map", is_flag=True, help="Also write where the classifiers looked.")
@click.option("--dicom", is_flag=True, help="Also write DICOM objects: SEG, SR, images, PDF.")
def analyse(
    source: Path,
    out: Path,
    engine: str,
    threads: int,
    weights: Path | None,
    second_opinion: bool,  # noqa: FBT001
    heat_map: bool,  # noqa: FBT001
    dicom: bool,  # noqa: FBT001
) -> None:
    """Analyse a DICOM folder, a zip or a NIfTI file without any server.

    Writes analysis.json, lungs.nii.gz, lesions.nii.gz (in the input's own geometry) and
    contact_sheet.png to a new folder, with --dicom also the objects that go to a PACS, in a folder
    dicom. Research use only, not for primary diagnosis.
    """
    from pipelines import analysis, presentation
    from pipelines.engines.choice import EngineChoice
    from pipelines.errors import NoUsableSeriesError
    from pipelines.findings import whole_folder
    from pipelines.series import candidates

    write_dicom = _dicom_writer(source) if dicom else None
    try:
        with whole_folder(out) as staging:
            models = analysis.Models.open(
                weights,
                EngineChoice(engine),
                threads=threads,
                second_opinion=second_opinion,
                heat_map=heat_map,
            )
            click.echo(f"engine         {models.engine}")
            volume, found = analysis.analyse_study(
                _told(candidates(source, threads=threads)),
                models,
                progress=lambda step, seconds, known: click.echo(
                    f"{step:14} {seconds:6.2f} s  {_known(known)}"
                ),
            )
            found.write(staging, volume)
            presentation.contact_sheet(volume, found).save(staging / "contact_sheet.png")
            if write_dicom is not None:
                write_dicom(found, source, staging / "dicom")
    except NoUsableSeriesError as error:
        nothing = f"{source} holds no DICOM image: give a folder or a zip of some, or a NIfTI file."
        raise click.ClickException(str(error) if error.refusals else nothing) from error
    except (PipelineError, OSError) as error:
        raise click.ClickException(told_of(error, out)) from error
    for refusal in found.refused_series:
        click.echo(f"not analysed: {refusal.reason}")
    for warning in found.warnings:
        click.echo(f"note: {warning}")
    if (opinion := found.second_opinion) is not None:
        severity = f", grade {opinion.severity}" if opinion.severity else ""
        trust = "" if opinion.validated else ", not validated"
        score = opinion.probabilities[opinion.most_likely]
        click.echo(f"second opinion{trust}: {opinion.most_likely} {score:.3f}{severity}")
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
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of manifests.")
def prepare(data: Path, out: Path) -> None:
    """Write manifests of the public research sets in the folder DATA.

    A manifest of your own data is a JSON file beside them: see the head of pipelines/manifest.py.
    """
    from pipelines.training.public_sets import write_manifests

    try:
        write_manifests(data, out, say=click.echo)
    except (PipelineError, OSError) as error:
        raise click.ClickException(told_of(error, out)) from error
    click.echo(f"Written: {out}. Now `appliance train weights/NAME/training.toml --sets {out}`.")


@click.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@of_sets
@click.option("--work", type=click.Path(path_type=Path), help="Folder of checkpoints and curves.")
@click.option(
    "--models",
    type=click.Path(exists=True, path_type=Path),
    help="Folder of the models that mark lungs and lesions in its data; the shipped ones.",
)
@with_threads
@with_keys
def train(config: Path, sets: Path, work: Path | None, models: Path | None, threads: int) -> None:
    """Train the model described by CONFIG, for example weights/lungs/training.toml.

    A training that was interrupted goes on where its last checkpoint left it: there is one at each
    validation and every two minutes. At the end the weights, their checksums and metrics.json are
    written beside CONFIG.
    """
    from pipelines.training.recipe import TrainingConfig
    from pipelines.training.run import run

    work = work or Path(".train") / config.parent.name
    try:
        settings = TrainingConfig.load(config)
        run(settings, sets, work, config.parent, models=models, threads=threads)
    except (PipelineError, OSError) as error:
        raise click.ClickException(told_of(error, config.parent)) from error


@click.command()
@click.argument("settings", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def average(settings: Path) -> None:
    """Make one model of several trained ones, for example weights/lesions/ensemble.toml.

    SETTINGS names the model, its decision and the folders of the trained networks, whose
    probabilities it averages. The model is written beside SETTINGS.
    """
    from pipelines.training.ensemble import write_ensemble

    try:
        write_ensemble(settings, settings.parent)
    except (PipelineError, OSError) as error:
        raise click.ClickException(told_of(error, settings.parent)) from error
    click.echo(f"Written: {settings.parent}. Now `appliance evaluate SETS/*.json --out REPORT`.")


@click.command()
@click.argument("comparison", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@of_sets
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the report.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder of models and checkpoints.")
@with_threads
@with_keys
def select(comparison: Path, sets: Path, out: Path, work: Path | None, threads: int) -> None:
    """Train and compare the models that COMPARISON names, for example weights/comparison.toml.

    Each contest keeps the model that is best on the validation groups; the report shows the test
    groups. It may take days, and goes on where it was interrupted.
    """
    try:
        from pipelines.training.select import select as run
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"Reports need {error.name}: pip install 'chest-ct-appliance[training]'."
        ) from error

    try:
        run(comparison, sets, work or Path(".train/select"), out, threads=threads, say=click.echo)
    except (PipelineError, OSError) as error:
        raise click.ClickException(told_of(error, out)) from error


@click.command()
@click.argument("manifests", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--models", type=click.Path(exists=True, path_type=Path), help="Folder of models.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["train", "validation", "test"]),
    default=["test"],
    show_default=True,
    help="Only these cases; several may be named.",
)
@click.option("--positive", default="covid", show_default=True, help="The label looked for.")
@click.option("--second-opinion", is_flag=True, help="Also measure the kinds of pneumonia.")
@click.option(
    "--readers",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="CSV of what people called the cases: reader, case, label, and set if need be.",
)
@click.option(
    "--without-cases", is_flag=True, help="Name and show no single case: a report to give away."
)
@with_engine
@with_threads
def evaluate(
    manifests: tuple[Path, ...],
    models: Path | None,
    out: Path,
    parts: tuple[str, ...],
    positive: str,
    readers: Path | None,
    second_opinion: bool,  # noqa: FBT001
    without_cases: bool,  # noqa: FBT001
    engine: str,
    threads: int,
) -> None:
    """Hold the models against data sets: MANIFESTS are JSON files, see pipelines/manifest.py.

    Writes report.html with its pictures, and metrics.json, to the folder OUT.
    """
    try:
        from pipelines.evaluation.evaluate import evaluate as run
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"Reports need {error.name}: pip install 'chest-ct-appliance[training]'."
        ) from error
    from pipelines import analysis
    from pipelines.engines.choice import EngineChoice
    from pipelines.manifest import Part, open_manifest

    try:
        opened = analysis.Models.open(
            models, EngineChoice(engine), threads=threads, second_opinion=second_opinion
        )
        run(
            [open_manifest(path) for path in manifests],
            opened,
            out,
            parts=[Part(part) for part in parts],
            positive_label=positive,
            readers=readers,
            single_cases=not without_cases,
            say=click.echo,
        )
    except (PipelineError, OSError) as error:
        raise click.ClickException(told_of(error, out)) from error
    click.echo(f"Written: {out / 'report.html'} and metrics.json beside it.")


def told_of(error: Exception, out: Path) -> str:
    """Return what ended a command, in a sentence; a full disk names no file by itself."""
    if isinstance(error, OSError) and error.errno in FULL:
        return f"There was no room for {error.filename or out}: make some and start again."
    return str(error)


def _dicom_writer(source: Path) -> "Callable[[Analysis, Path, Path], None]":
    """Return what writes DICOM objects; it lives in a package that this one does not know."""
    if source.name.lower().endswith((".nii", ".nii.gz")):
        raise click.ClickException(
            "--dicom needs DICOM images: a NIfTI file names no patient and no study."
        )
    for entry in metadata.entry_points(group=OUTPUTS, name="dicom"):
        writer: Callable[[Analysis, Path, Path], None] = entry.load()
        return writer
    raise click.ClickException("Nothing here writes DICOM objects: install the appliance again.")


def _told(candidates: "Iterable[Candidate]") -> "Iterator[Candidate]":
    """Say of each volume how long its reading took."""
    began = time.perf_counter()
    for volume, refused in candidates:
        click.echo(f"reading        {time.perf_counter() - began:6.2f} s  {volume.shape[0]} slices")
        yield volume, refused
        del volume  # the next one needs the memory
        began = time.perf_counter()


def _known(known: dict[str, object]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in known.items()
    )
