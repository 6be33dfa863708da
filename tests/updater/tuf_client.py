"""Our client behind the command line that tuf-conformance drives (its CLIENT-CLI.md).

pytest tuf_conformance --entrypoint "python -m tests.updater.tuf_client"
"""

import sys
from pathlib import Path

import click

from updater.client import Client
from updater.errors import UpdateError
from updater.sources import HttpFetcher, Source

TRUSTED = "trusted_root"
"""What the suite says to trust first, in the place of the root that a release embeds."""


@click.group()
@click.option("--metadata-dir", required=True, type=click.Path(path_type=Path))
@click.option("--metadata-url", default="")
@click.option("--target-name", default="")
@click.option("--target-base-url", default="")
@click.option("--target-dir", type=click.Path(path_type=Path))
@click.pass_context
def main(ctx: click.Context, **options: object) -> None:
    ctx.obj = options


@main.command()
@click.argument("trusted_root", type=click.Path(path_type=Path))
@click.pass_obj
def init(options: dict, trusted_root: Path) -> None:
    (options["metadata_dir"] / TRUSTED).write_bytes(trusted_root.read_bytes())
    _client(options)  # puts root.json where the suite looks for it


@main.command()
@click.pass_obj
def refresh(options: dict) -> None:
    _client(options).refresh()


@main.command()
@click.pass_obj
def download(options: dict) -> None:
    _client(options).fetch(options["target_name"])


def _client(options: dict) -> Client:
    metadata_url, targets_url = (
        options[name].rstrip("/") + "/" for name in ("metadata_url", "target_base_url")
    )
    metadata_dir = options["metadata_dir"]
    return Client(
        Source("the suite's server", HttpFetcher(), metadata_url, targets_url),
        (metadata_dir / TRUSTED).read_bytes(),
        metadata_dir=metadata_dir,
        staging_dir=options["target_dir"] or metadata_dir,
        spare_bytes=0,
    )


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except UpdateError as error:
        sys.exit(str(error))
