"""The command line: reads arguments, calls what does the work, prints what it gives. Imports are inside commands: help is fast."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptk.plan import Plan
    from ptk.spec import Spec
    from ptk.work import WorkStore
    from ptk_catalog import Catalog

__all__ = ["cli", "main"]

_SPEC = click.argument("spec", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_WORK = click.option(
    "--work", type=click.Path(path_type=Path), default=Path(".ptk"), show_default=True, help="Where finished steps are kept."
)
_CATALOG = click.option(
    "--catalog", metavar="URL", help="Where the catalog is.  [default: as the spec says, else catalog/store]"
)
_SAMPLE = click.option(
    "--sample", type=click.IntRange(min=1), metavar="N", help="Take the first N rows of each source; nothing is registered."
)
_FORCE = click.option(
    "--force", multiple=True, metavar="STEP", help="Do this step again, and all that follow from it; asks its model again."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="preference-toolkit", prog_name="ptk")
def cli() -> None:
    """Process preference data by declared specs: plan, run, and keep every result in a versioned catalog."""


@cli.command()
@_SPEC
@_WORK
def validate(spec: Path, work: Path) -> None:
    """Check a spec whole: options, references, files, columns, models. Runs nothing."""
    plan, _ = _planned(spec, work)
    click.echo(f"{spec}: fine: {len(plan.nodes)} steps, {len(plan.spec.outputs)} outputs")


@cli.command()
@_SPEC
@_WORK
@_SAMPLE
@_FORCE
@_JSON
def plan(spec: Path, work: Path, sample: int | None, force: tuple[str, ...], as_json: bool) -> None:
    """Say what a run would do, why, and what it would cost."""
    planned, store = _planned(spec, work, sample, force)
    _print_plan(planned, store, as_json)


@cli.command()
@_SPEC
@_WORK
@_CATALOG
@_SAMPLE
@_FORCE
@click.option("--dry-run", is_flag=True, help="Plan only.")
@_JSON
def run(
    spec: Path, work: Path, catalog: str | None, sample: int | None, force: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:
    """Run a spec; what is finished already is not done again."""
    planned, store = _planned(spec, work, sample, force)
    if dry_run:
        _print_plan(planned, store, as_json)
        return
    from ptk.execute import run_plan
    from ptk.progress import reporter_for
    from ptk.render import summary_as_text

    place = _catalog_place(planned.spec, catalog)
    reporter = reporter_for(sys.stderr)
    try:
        summary = run_plan(planned, store, lambda: _open_catalog(place), reporter)
    finally:
        reporter.close()
    _print(summary.as_json() if as_json else summary_as_text(summary, place))


@cli.command()
@_SPEC
@click.argument("step")
@_WORK
@click.option("--first", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Show the first N.")
@_JSON
def rejects(spec: Path, step: str, work: Path, first: int, as_json: bool) -> None:
    """Show the rows that a finished step set aside, each with its reason and, from a file, its line."""
    from ptk.render import rejects_as_json, rejects_as_text

    planned, store = _planned(spec, work)
    node = planned.finished_node(step)
    rows = store.rejects(node.key).head(first).collect()
    _print(rejects_as_json(node, rows) if as_json else rejects_as_text(node, rows))


@cli.command()
@_JSON
def ops(as_json: bool) -> None:
    """List the operators and their options."""
    from ptk.operator import find_operator, operator_names

    operators = [find_operator(name) for name in operator_names()]
    if as_json:
        _print(
            [{"name": item.name, "help": item.help, "version": item.version, "inputs": list(item.inputs)} for item in operators]
        )
        return
    for item in operators:
        click.echo(f"{item.name}  {item.help}")
        for name, option in item.params.model_fields.items():
            needed = "needed" if option.is_required() else f"default {_default(option.default)}"
            click.echo(f"    {name}: {option.description or ''} ({needed})")


def _default(value: Any) -> str:
    return str(getattr(value, "written", value))


@cli.command()
def schema() -> None:
    """Print the JSON Schema of the spec language, for editors."""
    from ptk.schema import language_schema

    _print(language_schema())


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Lay out a starter project: specs, a small corpus, exemplars."""
    from ptk.starter import lay_out

    files = lay_out(folder)
    click.echo(f"{len(files)} files written to {folder}; now: cd {folder} && ptk run specs/quickstart.yaml")


@cli.group()
def catalog() -> None:
    """Look into the catalog."""


def _catalog_command(function: Callable[..., None]) -> Callable[..., None]:
    place = click.option(
        "--catalog", "place", metavar="URL", default="catalog/store", show_default=True, help="Where the catalog is."
    )
    return place(_JSON(function))


@catalog.command("ls")
@_catalog_command
def catalog_ls(place: str, as_json: bool) -> None:
    """List the entries and their newest versions."""
    from ptk.render import table, version_as_json

    opened = _open_catalog(place, create=False)
    newest = [opened.version(entry) for entry in opened.entries()]
    if as_json:
        _print([{name: value for name, value in version_as_json(item).items() if name != "lineage"} for item in newest])
        return
    rows = [
        [item.entry, f"v{item.number}", f"{item.rows:,}", ", ".join(item.tags) or "-", item.created_at[:19]] for item in newest
    ]
    click.echo(table(["entry", "newest", "rows", "tags", "committed"], rows))


@catalog.command("log")
@click.argument("entry")
@_catalog_command
def catalog_log(entry: str, place: str, as_json: bool) -> None:
    """List the versions of an entry, newest first."""
    from ptk.render import table, version_as_json

    versions = _open_catalog(place, create=False).log(entry)
    if as_json:
        _print([version_as_json(item) for item in versions])
        return
    rows = [
        [f"v{item.number}", f"{item.rows:,}", ", ".join(item.tags) or "-", item.created_at[:19], item.digest[:19]]
        for item in versions
    ]
    click.echo(table(["version", "rows", "tags", "committed", "digest"], rows))


@catalog.command("show")
@click.argument("reference")
@_catalog_command
def catalog_show(reference: str, place: str, as_json: bool) -> None:
    """Show one version: columns, licence, and how it was made."""
    from ptk.render import version_as_json, version_as_text

    version = _open_catalog(place, create=False).version(reference)
    _print(version_as_json(version) if as_json else version_as_text(version))


@catalog.command("verify")
@click.argument("reference")
@_catalog_command
def catalog_verify(reference: str, place: str, as_json: bool) -> None:
    """Read a version whole and compare it with its digests."""
    version = _open_catalog(place, create=False).verify(reference)
    facts = {"entry": version.entry, "version": f"v{version.number}", "digest": version.digest, "verified": True}
    _print(facts if as_json else f"{version.reference}: {version.rows:,} rows are what was committed")


@catalog.command("tag")
@click.argument("reference")
@click.argument("tag")
@click.option("--move", is_flag=True, help="Take the tag from the version it stands on.")
@_catalog_command
def catalog_tag(reference: str, tag: str, move: bool, place: str, as_json: bool) -> None:
    """Set a tag on a version."""
    opened = _open_catalog(place, create=False)
    opened.tag(reference, tag, move=move)
    version = opened.version(reference)
    facts = {"entry": version.entry, "version": f"v{version.number}", "tags": list(version.tags)}
    _print(facts if as_json else f"{version.reference}: tags {', '.join(version.tags)}")


def _planned(path: Path, work: Path, sample: int | None = None, force: tuple[str, ...] = ()) -> tuple[Plan, WorkStore]:
    from ptk.spec import load_spec

    spec = load_spec(path)
    from ptk.plan import make_plan
    from ptk.work import WorkStore

    store = WorkStore(work)
    return make_plan(spec, store, sample=sample, force=force), store


def _catalog_place(spec: Spec, given: str | None) -> str:
    if given is not None:
        return given
    if spec.catalog is None:
        return "catalog/store"
    return spec.catalog if "://" in spec.catalog else os.path.relpath(spec.path.parent / spec.catalog)


def _open_catalog(place: str, *, create: bool = True) -> Catalog:
    import ptk_catalog

    return ptk_catalog.open(place, create=create)


def _print_plan(planned: Plan, store: WorkStore, as_json: bool) -> None:
    from ptk.cost import estimate
    from ptk.render import plan_as_json, plan_as_text

    costs = estimate(planned, store)
    _print(plan_as_json(planned, costs) if as_json else plan_as_text(planned, costs))


def _print(content: Any) -> None:
    if isinstance(content, str):
        click.echo(content)
    else:
        import json

        click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def main() -> None:
    """Run the command line; every error ptk knows becomes a message and an exit code."""
    try:
        sys.exit(cli(standalone_mode=False))
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("\nStopped. What was finished is kept; run the same command to go on.", err=True)
        _leave(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except Exception as error:
        if not isinstance(code := getattr(error, "exit_code", None), int):
            raise
        click.echo(f"ptk: {error}" if code != 2 else str(error), err=True)
        sys.exit(code)


def _leave(code: int) -> None:
    """Exit without waiting for threads that libraries left running."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
