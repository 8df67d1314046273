"""The command line: reads arguments, calls what does the work, prints what it gives. Imports are inside commands: help is fast."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ptk.places import Place, place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ptk.engines.engine import Engine
    from ptk.plan import Plan
    from ptk.report.evidence import Evidence
    from ptk.spec import Spec
    from ptk.work import WorkStore
    from ptk_catalog import Catalog, Version

__all__ = ["cli", "main"]

_SPEC = click.argument("spec", type=click.Path(path_type=Path))
_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_WORK = click.option(
    "--work",
    type=place_of,
    metavar="FOLDER|URL",
    default=".ptk",
    show_default=True,
    help="Where finished steps are kept.",
)
_CATALOG = click.option(
    "--catalog", metavar="URL", help="Where the catalog is.  [default: as the spec says, else catalog/store]"
)
_REGISTRY = click.option(
    "--registry",
    metavar="URL",
    help="The catalog's registry, where it is elsewhere: postgresql://...  [default: PTK_REGISTRY, where a password is better kept]",
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
@_CATALOG
def validate(spec: Path, work: Place, catalog: str | None) -> None:
    """Check a spec whole: options, references, files, columns, models. Runs nothing."""
    plan, _ = _planned(spec, work, catalog)
    click.echo(f"{spec}: fine: {len(plan.nodes)} steps, {len(plan.spec.outputs)} outputs")


@cli.command()
@_SPEC
@_WORK
@_CATALOG
@_SAMPLE
@_FORCE
@_JSON
def plan(spec: Path, work: Place, catalog: str | None, sample: int | None, force: tuple[str, ...], as_json: bool) -> None:
    """Say what a run would do, why, and what it would cost."""
    planned, store = _planned(spec, work, catalog, sample, force)
    _print_plan(planned, store, as_json)


@cli.command()
@_SPEC
@_WORK
@_CATALOG
@_SAMPLE
@_FORCE
@click.option(
    "--engine", type=click.Choice(["polars", "dask"]), default="polars", show_default=True, help="What runs the steps."
)
@click.option("--scheduler", metavar="ADDRESS", help="Dask: the scheduler of a cluster, such as tcp://10.0.0.1:8786.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Dask: start N worker processes on this machine.")
@click.option(
    "--partitions",
    type=click.IntRange(min=1),
    metavar="N",
    help="Dask: into how many parts rows are cut; results do not change.",
)
@click.option("--max-requests", type=click.IntRange(min=0), metavar="N", help="Stop before a step would ask its model more.")
@click.option(
    "--max-tokens", type=click.IntRange(min=0), metavar="N", help="Stop before prompts and answers could take more tokens."
)
@click.option("--dry-run", is_flag=True, help="Plan only.")
@_JSON
def run(
    spec: Path,
    work: Place,
    catalog: str | None,
    sample: int | None,
    force: tuple[str, ...],
    engine: str,
    scheduler: str | None,
    workers: int | None,
    partitions: int | None,
    max_requests: int | None,
    max_tokens: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run a spec; what is finished already is not done again."""
    if engine != "dask" and (scheduler or workers or partitions):
        raise click.UsageError("--scheduler, --workers and --partitions go with --engine dask")
    if scheduler and workers:
        raise click.UsageError("--scheduler names a cluster that has its workers; leave --workers out")
    planned, store = _planned(spec, work, catalog, sample, force)
    if dry_run:
        _print_plan(planned, store, as_json)
        return
    from ptk.budget import Budget
    from ptk.execute import CellsFailed, run_plan
    from ptk.progress import reporter_for
    from ptk.render import summary_as_text

    place = _catalog_place(planned.spec, catalog)
    reporter = reporter_for(sys.stderr)
    with _opened_engine(engine, work, scheduler, workers, partitions) as opened:
        try:
            budget = Budget(max_requests, max_tokens)
            summary = run_plan(planned, store, lambda: _open_catalog(place), reporter, opened, budget)
        except CellsFailed as error:
            reporter.close()
            _print(error.summary.as_json() if as_json else summary_as_text(error.summary, place))
            raise
        finally:
            reporter.close()
    outputs = planned.spec.outputs
    wanted = [(version, publish) for version in summary.versions if (publish := outputs[version.entry].publish) is not None]
    published: list[dict[str, Any]] = []
    failures: list[str] = []
    if wanted:
        from ptk.publish.publication import publish_all

        published, failures = publish_all(_open_catalog(place), wanted, store, _say)
    reported, unwritten = _reported(planned, store, summary.versions)
    if as_json:
        _print({**summary.as_json(), "published": published, "report": reported})
    else:
        from ptk.render import published_as_text, reported_as_text

        lines = [summary_as_text(summary, place), *map(published_as_text, published)]
        _print("\n".join([*lines, *([reported_as_text(reported)] if reported is not None else [])]))
    if failures:
        from ptk.errors import PublishError

        raise PublishError("\n".join(["the versions above are committed, but not all are published:", *failures]))
    if unwritten is not None:
        raise unwritten


@cli.command()
@_SPEC
@click.argument("step")
@_WORK
@_CATALOG
@click.option("--first", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Show the first N.")
@_JSON
def rejects(spec: Path, step: str, work: Place, catalog: str | None, first: int, as_json: bool) -> None:
    """Show the rows that a finished step set aside, each with its reason and, from a file, its line."""
    from ptk.render import rejects_as_json, rejects_as_text

    planned, store = _planned(spec, work, catalog)
    found = [(node, store.rejects(planned.finished(node).key).head(first).collect()) for node in planned.named(step)]
    if as_json:
        told = [rejects_as_json(node, rows) for node, rows in found]
        _print(told[0] if step == found[0][0].name else told)
    else:
        click.echo("\n".join(rejects_as_text(node, rows) for node, rows in found))


@cli.group()
def prompt() -> None:
    """Look at what models are shown."""


@prompt.command("show")
@_SPEC
@click.argument("step")
@_WORK
@_CATALOG
@click.option("--row", metavar="ID", help="The row's key, or its beginning.  [default: the first row]")
@_JSON
def prompt_show(spec: Path, step: str, work: Place, catalog: str | None, row: str | None, as_json: bool) -> None:
    """Print exactly what a step's model will see for a row of its finished input. Loads no model, asks nothing."""
    from ptk.prompt import requests_of
    from ptk.render import prompts_as_text

    planned, store = _planned(spec, work, catalog)
    shown = requests_of(planned, store, step, row)
    _print([item.as_json() for item in shown] if as_json else prompts_as_text(shown))


@cli.command()
@click.argument("reference")
@click.argument("repo", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository private; refuse one that is public.")
@click.option("--tag", metavar="TAG", help="Tag of the published commit.  [default: the version's number, such as v3]")
@click.option("--rejects", is_flag=True, help="Publish the rejected rows too, from the work store.")
@click.option("--licence-ok", is_flag=True, help="You have seen to the licences that the preview complains about.")
@click.option("--dry-run", is_flag=True, help="Show what would be pushed; push nothing.")
@_WORK
@click.option("--catalog", "place", metavar="URL", default="catalog/store", show_default=True, help="Where the catalog is.")
@_REGISTRY
@_JSON
def publish(
    reference: str,
    repo: str,
    private: bool,
    tag: str | None,
    rejects: bool,
    licence_ok: bool,
    dry_run: bool,
    work: Path,
    place: str,
    registry: str | None,
    as_json: bool,
) -> None:
    """Publish a version of the catalog on the Hugging Face Hub: files, card, one commit, a tag. Safe to repeat.

    The token comes from HF_TOKEN, or from `hf auth login`.
    """
    from pydantic import ValidationError

    from ptk.publish.settings import Publish

    try:
        settings = Publish(repo=repo, private=private, tag=tag, rejects=rejects, licence_ok=licence_ok)
    except ValidationError as error:
        raise click.UsageError("; ".join(str(item["ctx"]["error"]) for item in error.errors())) from None
    from ptk.publish.publication import prepared, pushed
    from ptk.render import preview_as_text, published_as_text
    from ptk.work import WorkStore

    opened = _open_catalog(place, registry, create=False)
    with prepared(opened, reference, settings, WorkStore(work)) as publication:
        if not as_json:
            _print(preview_as_text(publication))
        refusals = publication.refusals()
        done = None if dry_run or refusals else pushed(publication, opened, _say)
        if as_json:
            _print({**publication.as_json(), "published": done})
        elif done is not None:
            _print(published_as_text(done))
        if refusals:
            from ptk.errors import PublishError

            raise PublishError("not published: " + "; ".join(refusals))


@cli.command()
@click.argument("sources", nargs=-1, required=True, metavar="SPEC|ENTRY@REF...")
@click.option(
    "-o",
    "--output",
    "outputs",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Where it is written: .html, .md, or a folder for figures and tables; several may be given.",
)
@click.option("--title", help="Title.  [default: the name of the spec, or of the versions]")
@click.option("--examples", type=click.IntRange(0, 5_000), default=200, show_default=True, metavar="N", help="Show at most N.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Another seed, other examples."
)
@click.option(
    "--study",
    "studies",
    type=click.Path(path_type=Path),
    multiple=True,
    help="What `ptk study read` wrote; several may be given.",
)
@_WORK
@_CATALOG
@_JSON
def report(
    sources: tuple[str, ...],
    outputs: tuple[Path, ...],
    title: str | None,
    examples: int,
    seed: int,
    studies: tuple[Path, ...],
    work: Place,
    catalog: str | None,
    as_json: bool,
) -> None:
    """Write a report of a finished run, named by its spec, or of versions of the catalog: figures, tables, caveats, examples."""
    from ptk.gather_evidence import evidence_of_run, evidence_of_versions, registered, with_studies
    from ptk.render import reported_as_text

    specs = [source for source in sources if source.endswith((".yaml", ".yml"))]
    if specs and len(sources) > 1:
        raise click.UsageError("a report is of one spec, or of one or more versions of the catalog")
    if specs:
        planned, store = _planned(Path(specs[0]), work, catalog)
        from ptk_catalog import CatalogError

        try:
            versions = registered(planned, _open_catalog(_catalog_place(planned.spec, catalog), create=False))
        except CatalogError:  # a run that registers nothing needs none
            versions = []
        evidence = evidence_of_run(planned, store, versions)
    else:
        evidence = evidence_of_versions(_open_catalog(catalog or "catalog/store", create=False), sources)
    reported = _report_written(with_studies(evidence, studies), outputs, title, examples, seed)
    _print(reported if as_json else reported_as_text(reported))


def _reported(planned: Plan, store: WorkStore, versions: Sequence[Version]) -> tuple[dict[str, Any] | None, Exception | None]:
    """Write the report that a spec wants of a run; return what it is, or why it could not be written, so that the run is told first."""
    from ptk.errors import PtkError
    from ptk.gather_evidence import evidence_of_run, with_studies
    from ptk.plan import make_plan

    settings = planned.spec.report
    if settings is None or planned.sample is not None:
        return None, None
    files = [Path(os.path.relpath(to.path)) for to in settings.to]
    try:
        finished = make_plan(planned.spec, store)  # which knows the models that steps of this run made
        evidence = with_studies(evidence_of_run(finished, store, versions), [study.path for study in settings.study])
        return _report_written(evidence, files, settings.title, settings.examples, settings.seed), None
    except PtkError as error:
        return None, error


def _report_written(evidence: Evidence, outputs: Sequence[Path], title: str | None, examples: int, seed: int) -> dict[str, Any]:
    """Write a report wherever it is wanted, and say what it is."""
    from ptk.report.make import digest_of, report_of
    from ptk.report.write import write_report

    made = report_of(evidence, title=title, examples=examples, seed=seed)
    written = write_report(made, outputs)
    shown = made.examples
    return {
        "digest": digest_of(made),
        "figures": len(made.figures()),
        "examples": len(shown.items) if shown is not None else 0,
        "of": shown.total if shown is not None else 0,
        "files": [{"path": str(item.path), "bytes": item.bytes} for item in written],
    }


@cli.group()
def study() -> None:
    """Ask people: make a blind kit, and read what they answered."""


@study.command("make")
@click.argument("source", metavar="SPEC|ENTRY@REF")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--step", metavar="STEP", help="The step whose rows are taken, where SOURCE is a spec.")
@click.option(
    "--kind",
    type=click.Choice(["personas", "choices", "ratings", "write"]),
    default="personas",
    show_default=True,
    help="personas, rated on four scales; choices between two responses; ratings of responses; write, people's own personas.",
)
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="COLUMN",
    help="What is rated; of a choice first the one whose wins count.  [default for personas: chosen_persona, rejected_persona]",
)
@click.option("--persona", metavar="COLUMN", help="The persona that responses are to suit, people's own or inferred.")
@click.option(
    "--judge",
    "judges",
    multiple=True,
    metavar="QUESTION=COLUMN",
    help="Of choices: the column of a judge's verdicts on the same two responses, to be compared with people's.",
)
@click.option("--rows", type=click.IntRange(min=1), default=30, show_default=True, metavar="N", help="How many rows to draw.")
@click.option(
    "--raters", type=click.IntRange(1, 200), default=3, show_default=True, metavar="N", help="How many sheets to write."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, metavar="N", help="Another seed, other rows and orders."
)
@_WORK
@_CATALOG
@_JSON
def study_make(
    source: str,
    folder: Path,
    step: str | None,
    kind: Literal["personas", "choices", "ratings", "write"],
    columns: tuple[str, ...],
    persona: str | None,
    judges: tuple[str, ...],
    rows: int,
    raters: int,
    seed: int,
    work: Place,
    catalog: str | None,
    as_json: bool,
) -> None:
    """Write a kit into FOLDER: a page that works offline and sheets to give to people, and key.json, which you keep."""
    from ptk.study.kit import Wanted, make_kit

    if source.endswith((".yaml", ".yml")):
        if step is None:
            raise click.UsageError("name the step of the spec whose rows are taken: --step STEP")
        planned, store = _planned(Path(source), work, catalog)
        nodes = planned.named(step)
        if len(nodes) > 1:
            raise click.UsageError(f"'{step}' has {len(nodes)} cells; name one, such as --step '{nodes[0].name}'")
        node = planned.finished(nodes[0])
        frame, key_column, named = store.frame(node.key), node.key_column, f"step {node.name} of {planned.spec.name}"
    else:
        dataset = _open_catalog(catalog or "catalog/store", create=False).load(source)
        frame, key_column, named = dataset.scan(), dataset.manifest.key[0], dataset.version.reference
    if not columns and kind == "personas":
        columns = ("chosen_persona", "rejected_persona")
    if any("=" not in judge for judge in judges):
        raise click.UsageError("--judge is a question and a column, as in --judge answerability=better")
    judge = {question: column for question, _, column in (one.partition("=") for one in judges)}
    kit = make_kit(frame, key_column, named, Wanted(kind, columns, persona, rows, raters, seed, judge), folder)
    facts = {"folder": str(kit.folder), "study": kit.study, "items": kit.items, "rows": kit.rows, "left_out": kit.left_out}
    told = (
        f"{kit.items:,} items of {kit.rows:,} rows: give {folder / 'give'} to people; keep {folder / 'key.json'}, which tells what is what"
        + (f"\n{kit.left_out:,} rows were left out: they lack a text" if kit.left_out else "")
    )
    _print(facts if as_json else told)


@study.command("read")
@click.argument("key", type=click.Path(path_type=Path))
@click.argument("answers", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where the result is written, for --study of a report.")
@click.option(
    "--personas",
    type=click.Path(path_type=Path),
    help="Where the personas that people wrote are written, as JSON Lines with their prompts.",
)
@_JSON
def study_read(key: Path, answers: tuple[Path, ...], output: Path | None, personas: Path | None, as_json: bool) -> None:
    """Read ANSWERS, files that the page saved or filled-in sheets, with the KEY: what people say, and how far they agree."""
    from ptk.render import study_as_text
    from ptk.study.answers import no_answers, read_answers, read_key, result_of, written

    opened = read_key(key)
    read = read_answers(opened, answers)
    if not read.given:
        raise no_answers(read)
    result = result_of(opened, read)
    written(result, output, personas)
    _print(result.model_dump(mode="json") if as_json else study_as_text(result, read.rejected))


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

    @functools.wraps(function)
    def command(*arguments: Any, place: str, registry: str | None, **options: Any) -> None:
        import ptk_catalog

        function(ptk_catalog.open(place, registry=registry, create=False), *arguments, **options)

    return place(_REGISTRY(_JSON(command)))


@catalog.command("ls")
@_catalog_command
def catalog_ls(opened: Catalog, as_json: bool) -> None:
    """List the entries and their newest versions."""
    from ptk.render import registered_as_json, table

    newest = opened.newest()
    if as_json:
        _print([registered_as_json(item) for item in newest])
        return
    rows = [
        [item.entry, f"v{item.number}", f"{item.rows:,}", ", ".join(item.tags) or "-", item.created_at[:19]] for item in newest
    ]
    click.echo(table(["entry", "newest", "rows", "tags", "committed"], rows))


@catalog.command("log")
@click.argument("entry")
@_catalog_command
def catalog_log(opened: Catalog, entry: str, as_json: bool) -> None:
    """List the versions of an entry, newest first."""
    from ptk.render import registered_as_json, table

    versions = opened.log(entry)
    if as_json:
        _print([registered_as_json(item) for item in versions])
        return
    rows = [
        [f"v{item.number}", f"{item.rows:,}", ", ".join(item.tags) or "-", item.created_at[:19], item.digest[:19]]
        for item in versions
    ]
    click.echo(table(["version", "rows", "tags", "committed", "digest"], rows))


@catalog.command("show")
@click.argument("reference")
@_catalog_command
def catalog_show(opened: Catalog, reference: str, as_json: bool) -> None:
    """Show one version: columns, licence, and how it was made."""
    from ptk.render import version_as_json, version_as_text
    from ptk_catalog import OlderFormat

    version = opened.version(reference)
    try:
        models = [model.reference for relation, model in opened.built_on(version.reference) if relation == "trained_on"]
    except OlderFormat:  # such a registry knows no models
        models = []
    _print(version_as_json(version, models) if as_json else version_as_text(version, models))


@catalog.command("verify")
@click.argument("reference")
@_catalog_command
def catalog_verify(opened: Catalog, reference: str, as_json: bool) -> None:
    """Read a version whole and compare it with its digests."""
    version = opened.verify(reference)
    facts = {"entry": version.entry, "version": f"v{version.number}", "digest": version.digest, "verified": True}
    _print(facts if as_json else f"{version.reference}: {version.rows:,} rows are what was committed")


@catalog.command("diff")
@click.argument("before")
@click.argument("after")
@_catalog_command
def catalog_diff(opened: Catalog, before: str, after: str, as_json: bool) -> None:
    """Say what is different between two versions: rows, preferences, columns, length bias, duplicates."""
    from ptk.catalog_text import diff_as_text

    told = opened.diff(before, after)
    _print(told if as_json else diff_as_text(told))


@catalog.command("lineage")
@click.argument("reference")
@click.option("--row", metavar="ID", help="What made each value of the row whose key is ID, or begins so.")
@_catalog_command
def catalog_lineage(opened: Catalog, reference: str, row: str | None, as_json: bool) -> None:
    """Walk from a version, or one of its rows, back to what it was made of, and forward to what was built on it."""
    from ptk.catalog_text import lineage_as_text, row_lineage_as_text

    told = opened.lineage(reference) if row is None else opened.row_lineage(reference, row)
    _print(told if as_json else lineage_as_text(told) if row is None else row_lineage_as_text(told))


@catalog.command("load")
@click.argument("reference")
@click.argument("target", type=click.Path(path_type=Path), required=False)
@click.option("--column", "columns", multiple=True, metavar="NAME", help="Load this column alone; may be given several times.")
@click.option("--where", metavar="SQL", help="Load the rows that meet a condition, as in: score >= 4 AND source = 'hh'.")
@click.option(
    "--first", type=click.IntRange(min=1), metavar="N", help="Load the first N rows.  [default: all to a file, 5 on stdout]"
)
@click.option("--verify", is_flag=True, help="Read all of the version first, and compare it with its digests.")
@_catalog_command
def catalog_load(
    opened: Catalog,
    reference: str,
    target: Path | None,
    columns: tuple[str, ...],
    where: str | None,
    first: int | None,
    verify: bool,
    as_json: bool,
) -> None:
    """Print rows of a version, or write them to TARGET: a .parquet, .jsonl, .csv or .arrow file; for a model, a new folder."""
    version = opened.version(reference)
    if version.kind == "model":
        if target is None or columns or where or first:
            raise click.UsageError(
                f"{version.reference} is a model: name a new folder for its files, and none of --column, --where, --first"
            )
        opened.load_model(reference, to=target, verify=verify)
        facts = {"version": version.reference, "folder": str(target), "files": [file.name for file in version.model.files]}
        _print(facts if as_json else f"{version.reference}: {len(version.model.files):,} files written to {target}")
        return
    from ptk.catalog_rows import chosen_rows, rows_as_json, write_rows
    from ptk.catalog_text import rows_as_text

    rows = chosen_rows(opened.load(reference, verify=verify), columns, where)
    if target is not None:
        written = write_rows(rows if first is None else rows.head(first), target)
        told = {"version": version.reference, "digest": version.digest, "file": str(target), "rows": written}
        _print(told if as_json else f"{version.reference}: {written:,} rows written to {target}")
        return
    shown = rows.head(first or 5).collect(engine="streaming")
    _print(rows_as_json(shown) if as_json else rows_as_text(shown, version.rows if where is None else None))


@catalog.command("export")
@click.argument("reference")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--form", type=click.Choice(["delta", "parquet"]), default="delta", show_default=True, help="What is written.")
@_catalog_command
def catalog_export(opened: Catalog, reference: str, folder: Path, form: Literal["delta", "parquet"], as_json: bool) -> None:
    """Write a version into a new folder, as a Delta table or plain Parquet, with a Croissant description."""
    made = opened.export(reference, folder, form=form)
    facts = {"folder": str(made.folder), "rows": made.rows, "files": list(made.files)}
    _print(facts if as_json else f"{made.rows:,} rows in {len(made.files)} files written to {made.folder}")


@catalog.command("gc")
@click.option(
    "--grace-hours",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    metavar="N",
    help="Leave files that were written in the last N hours: a commit may be at work.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@_catalog_command
def catalog_gc(opened: Catalog, grace_hours: float, dry_run: bool, as_json: bool) -> None:
    """Remove files that no version needs, such as those of killed commits. Versions and tags stay."""
    swept = opened.gc(grace=grace_hours * 3600, dry_run=dry_run)
    facts = {"files": swept.files, "bytes": swept.bytes, "young": swept.young, "kept": swept.kept, "dry_run": dry_run}
    told = (
        f"{swept.files:,} files of {swept.bytes:,} bytes {'would be ' if dry_run else ''}removed; "
        f"{swept.young:,} more are too young, {swept.kept:,} are needed"
    )
    _print(facts if as_json else told)


@catalog.command("migrate")
@_catalog_command
def catalog_migrate(opened: Catalog, as_json: bool) -> None:
    """Bring the registry to the format of this version of ptk."""
    before, now = opened.migrate()
    told = f"the registry has format {now} already" if before == now else f"the registry went from format {before} to {now}"
    _print({"before": before, "now": now} if as_json else told)


@catalog.command("tag")
@click.argument("reference")
@click.argument("tag")
@click.option("--move", is_flag=True, help="Take the tag from the version it stands on.")
@_catalog_command
def catalog_tag(opened: Catalog, reference: str, tag: str, move: bool, as_json: bool) -> None:
    """Set a tag on a version."""
    opened.tag(reference, tag, move=move)
    version = opened.version(reference)
    facts = {"entry": version.entry, "version": f"v{version.number}", "tags": list(version.tags)}
    _print(facts if as_json else f"{version.reference}: tags {', '.join(version.tags)}")


@catalog.command("site")
@click.argument("out", type=click.Path(path_type=Path))
@_catalog_command
def catalog_site(opened: Catalog, out: Path, as_json: bool) -> None:
    """Write the catalog as a site into folder OUT: entries, statistics, rows, lineage. It needs no server and no network."""
    from ptk.site.pages import write_site

    written = write_site(opened, out)
    facts = {"folder": str(out), "entries": written.entries, "pages": written.pages}
    _print(facts if as_json else f"{written.pages:,} pages of {written.entries:,} entries: open {out / 'index.html'}")


@cli.group()
def answers() -> None:
    """Look after the stored answers of models."""


@answers.command("ls")
@_WORK
@_JSON
def answers_ls(work: Place, as_json: bool) -> None:
    """List the models that have stored answers."""
    from datetime import UTC, datetime

    from ptk.llm.answers import stored_models
    from ptk.render import table
    from ptk.work import WorkStore

    rows: list[dict[str, Any]] = [
        {
            "model": item.folder.name,
            "name": item.name,
            "identity": item.identity,
            "answers": item.answers,
            "segments": item.segments,
            "bytes": item.bytes,
            "newest": item.newest and datetime.fromtimestamp(item.newest, UTC).isoformat(timespec="seconds"),
        }
        for item in stored_models(WorkStore(work).answers)
    ]
    if as_json:
        _print(rows)
    elif rows:
        header = ["model", "name", "answers", "segments", "bytes", "newest"]
        shown = [
            [f"{value:,}" if isinstance(value, int) else str(value or "-") for value in map(row.get, header)] for row in rows
        ]
        click.echo(table(header, shown))
    else:
        click.echo(f"no answers are stored in {work}")


@answers.command("gc")
@_WORK
@click.option(
    "--keep-days",
    type=click.FloatRange(min=0),
    metavar="N",
    help="Remove the answers that were stored more than N days ago.",
)
@click.option("--model", metavar="PREFIX", help="Remove all answers of the models whose folder or name begins with PREFIX.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@_JSON
def answers_gc(work: Place, keep_days: float | None, model: str | None, dry_run: bool, as_json: bool) -> None:
    """Merge small files and remove half-written ones; remove answers where an option says so."""
    if keep_days is not None and model is not None:
        raise click.UsageError("--keep-days takes old answers of every model, --model all of one; give one of them")
    from ptk.llm.answers import clear_answers
    from ptk.work import WorkStore

    cleared = clear_answers(WorkStore(work).answers, keep_days=keep_days, model=model, dry_run=dry_run)
    if as_json:
        counts = ("name", "answers", "leftovers", "merged")
        _print([{"model": item.folder.name, **{name: getattr(item, name) for name in counts}} for item in cleared])
        return
    would = "would be " if dry_run else ""
    for item in cleared:
        named = item.folder.name if item.name is None else f"{item.folder.name} ({item.name})"
        click.echo(
            f"{named}: {item.answers:,} answers {would}removed, {item.leftovers:,} half-written files {would}removed, "
            f"{item.merged:,} small segments {would}merged"
        )
    if not cleared:
        click.echo(f"no answers are stored in {work}")


def _planned(
    path: Path, work: Place, catalog: str | None, sample: int | None = None, force: tuple[str, ...] = ()
) -> tuple[Plan, WorkStore]:
    from ptk.spec import load_spec

    spec = load_spec(path, catalog if catalog is None or "://" in catalog else str(Path(catalog).absolute()))
    from ptk.plan import make_plan
    from ptk.work import WorkStore

    store = WorkStore(work)
    return make_plan(spec, store, sample=sample, force=force), store


@contextmanager
def _opened_engine(
    name: str, work: Place, scheduler: str | None, workers: int | None, partitions: int | None
) -> Iterator[Engine]:
    opened: Engine
    if name == "dask":
        import logging

        from ptk.engines.dask import DaskEngine

        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is told once, by us
        opened = DaskEngine(work, scheduler=scheduler, workers=workers, partitions=partitions)
    else:
        from ptk.engines.polars import PolarsEngine

        opened = PolarsEngine()
    try:
        yield opened
    finally:
        opened.close()


def _catalog_place(spec: Spec, given: str | None) -> str:
    if given is not None:
        return given
    if spec.catalog is None:
        return "catalog/store"
    return spec.catalog if "://" in spec.catalog else os.path.relpath(spec.path.parent / spec.catalog)


def _open_catalog(place: str, registry: str | None = None, *, create: bool = True) -> Catalog:
    import ptk_catalog

    return ptk_catalog.open(place, registry=registry, create=create)


def _print_plan(planned: Plan, store: WorkStore, as_json: bool) -> None:
    from ptk.cost import estimate
    from ptk.render import plan_as_json, plan_as_text

    costs = estimate(planned, store)
    _print(plan_as_json(planned, costs) if as_json else plan_as_text(planned, costs))


def _say(what: str) -> None:
    click.echo(what, err=True)


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
