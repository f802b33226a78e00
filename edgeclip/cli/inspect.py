"""`edgeclip inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import console, emit, json_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeclip.bench.report import Report
    from edgeclip.bundle import Bundle

LOCAL = 5  # newest local reports that are shown

EXAMPLES = """\b
Examples:
  edgeclip inspect nano
  edgeclip inspect clip-b32/ --memory --json
  edgeclip inspect clip-moe --experts photos/                           what part of its tokens each expert takes
  edgeclip inspect clip-moe --experts photos/ --picture experts.html    and which patches
  edgeclip inspect clip-moe --texts captions.txt --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle")
@click.option("--memory", is_flag=True, help="Estimate the resident memory of each tower before loading it.")
@click.option(
    "--experts", metavar="DIR", help="Count how much each expert is used on the pictures below a folder."
)
@click.option(
    "--texts", type=click.Path(path_type=Path), metavar="FILE",
    help="The same on a file of texts, one a line, for mixtures in the text tower.",
)  # fmt: skip
@click.option(
    "--picture", type=click.Path(path_type=Path), metavar="FILE",
    help="Draw the use, and who takes which patch, into this .html or .png file.",
)  # fmt: skip
@click.option(
    "--limit", type=click.IntRange(min=1), help="Look at so many pictures, spread evenly, and so many texts."
)
@click.option(
    "--threads", type=click.IntRange(min=1), help="CPU threads. Default: one for each physical core."
)
@json_option
def command(
    bundle: str, memory: bool, experts: str | None, texts: Path | None, picture: Path | None, limit: int | None,
    threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Show what a bundle is and how well it agrees with its source.

    BUNDLE is a folder, a .zip of one, hf:ORG/NAME, or nano. Shows model, variants, fidelity, licences and
    size, the latency reports that it holds, and the engines and reports that were made of it on this machine.

    Of a model with mixtures of experts, --experts counts which experts the patches of your pictures take, and --picture shows it.
    """
    from edgeclip.bundle import open_bundle
    from edgeclip.cli import inspect_experts

    asked = experts is not None or texts is not None
    inspect_experts.check_picture(picture, asked)
    opened = open_bundle(bundle)
    record = _record(opened)
    use = inspect_experts.count(opened, experts, texts, picture, limit, threads, as_json) if asked else []
    if asked:
        record["expert_use"] = {one.tower: one.to_dict() for one in use}
    if memory:
        from edgeclip.runtime.memory import estimate_memory

        record["memory_bytes"] = {
            variant.id: estimate_memory(opened, variant) for variant in opened.manifest.variants
        }
    if opened.manifest.codecs:
        from edgeclip.runtime.codecs import Codecs

        record["codecs_measured"] = dict(Codecs.open(opened.path(opened.manifest.codecs)).measured)
    if engines := _engines(opened):
        record["engines"] = engines
    record["reports"] = _reports(opened)
    if as_json:
        emit(record)
    else:
        _print(record)
        inspect_experts.print_use(use)
        if picture is not None:
            click.echo(f"{picture}: written", err=True)


def _record(bundle: Bundle) -> dict[str, Any]:
    from dataclasses import asdict

    record = asdict(bundle.manifest)
    files = record.pop("files")
    return {
        "path": str(bundle.root),
        "digest": bundle.digest,
        "size_bytes": sum(entry["size"] for entry in files.values()),
        **record,
    }


def _engines(bundle: Bundle) -> list[dict[str, Any]]:
    """What was built for it on this machine, newest first."""
    from edgeclip.cli.engine_table import proof_of, targets_of
    from edgeclip.runtime.engines.seam import EngineOptions
    from edgeclip.runtime.tensorrt.store import store_of

    return [
        {
            "variant": record.variant.id,
            "engine": f"{record.library} {record.version}",
            "for": ", ".join(targets_of(record)),
            "size_bytes": record.size,
            "proof": proof_of(record),
        }
        for record in store_of(bundle, EngineOptions()).records()
    ]


def _reports(bundle: Bundle) -> list[dict[str, Any]]:
    """Latency reports inside the bundle, then this machine's own; newest first."""
    from edgeclip.bench.store import attached, kept

    found = [("bundle", *one) for one in attached(bundle)] + [("local", *one) for one in kept(bundle, LOCAL)]
    return [{"where": where, "file": str(path), **headline(report)} for where, path, report in found]


def headline(report: Report) -> dict[str, Any]:
    """What one line tells of a report; None for what it does not have."""
    scenarios = {one.scenario: one for one in report.scenarios}
    single, offline = scenarios.get("single-stream"), scenarios.get("offline")
    tower = report.subject.towers[0] if report.subject.towers else None
    return {
        "created": report.created,
        "device": report.device.name,
        "task": report.settings.task,
        "engine": tower.engine if tower else None,
        "variant": tower.variant if tower else None,
        "precision": tower.precision if tower else None,
        "threads": report.subject.threads,
        "p50_ms": single.latency.p50.ms if single else None,
        "p90_ms": single.latency.p90.ms if single else None,
        "throughput_per_s": offline.throughput_per_s if offline else None,
        "warnings": len(report.warnings) + len(report.state.flags),
    }


def _print(record: dict[str, Any]) -> None:
    from rich.table import Table

    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    text, licence = record["text"], record["licence"]
    preprocessing = record["preprocessing"]
    facts.add_row(
        "model", f"{record['name']} ({record['family']}), from {record['source'] or 'an unnamed source'}"
    )
    facts.add_row("model id", record["model_id"][:16])
    facts.add_row(
        "embeddings",
        f"{record['embedding_dim']} wide; scores by {record['activation']} at scale {record['logit_scale']:.4g}",
    )
    if preprocessing:
        height, width = preprocessing["size"]
        facts.add_row(
            "pictures", f"{width} x {height} pixels, {preprocessing['mode']}, {preprocessing['resample']}"
        )
    if detection := record["detection"]:
        size = (detection["preprocessing"] or {}).get("size")  # another one than the image tower's
        own = f" in {size[1]} x {size[0]} pixels" if size else ""
        kind = "of any label" if detection["class_agnostic"] else "of one label"
        facts.add_row(
            "detections",
            f"of {_regions(record)} regions{own}, from a score of {detection['threshold']:g}; boxes {kind} overlap by {detection['nms_iou']:g} at most",
        )
    if text:
        length = "up to " if text["dynamic_length"] else ""
        facts.add_row("texts", f"{length}{text['context_length']} tokens, vocabulary of {text['vocab_size']}")
    for labels in sorted({variant["labels"] for variant in record["variants"] if variant["labels"]}):
        shapes = (
            p["shape"]
            for v in record["variants"]
            if v["labels"] == labels
            for p in v["outputs"]
            if p["name"] == "logits"
        )
        scores = next(shape[-1] for shape in shapes)
        facts.add_row("labels", f"{scores} labels baked in ({labels})")
    for tower, line in _mixtures(record):
        facts.add_row("experts", f"{tower} tower: {line}")
    facts.add_row(
        "weights licence", licence["weights"] + (f"; {licence['credit']}" if licence["credit"] else "")
    )
    facts.add_row("size", _size(record["size_bytes"]))
    out = console()
    out.print(facts)
    detects = any((variant["fidelity"] or {}).get("detection") for variant in record["variants"])
    columns = ("box max", "score max") if detects else ()
    table = Table("variant", "precision", "attention", "opset", "max abs", "cosine min", *columns, "memory")
    table.columns[0].no_wrap = True  # an 80-column screen must not cut what tells the rows apart
    memory = record.get("memory_bytes", {})
    for variant in record["variants"]:
        axes, fidelity = variant["axes"], variant["fidelity"] or {}
        table.add_row(
            variant["id"],
            axes["precision"],
            axes["attention"],
            str(axes["opset"]),
            f"{fidelity['max_abs']:.1e}" if fidelity else "-",
            f"{fidelity['cosine_min']:.6f}" if fidelity else "-",
            *(_of_detector(fidelity, name) for name in ("box_max", "score_max") if detects),
            _size(memory[variant["id"]]) if variant["id"] in memory else "-",
        )
    out.print(table)
    for engine in record.get("engines", ()):
        out.print(
            f"engine: {engine['variant']} by {engine['engine']} for {engine['for']}, {_size(engine['size_bytes'])}, {engine['proof']}"
        )
    _print_reports(record["reports"])
    if "codecs_measured" in record:
        from edgeclip.cli.codecs import codec_table

        out.print(codec_table(record["codecs_measured"]))
    for warning in licence["warnings"]:
        out.print(f"licence: {warning}", style="yellow")


def _mixtures(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Of each tower with mixtures of experts: its name, and what they are in one line."""
    found = []
    for tower in dict.fromkeys(variant["tower"] for variant in record["variants"]):
        own = [v for v in record["variants"] if v["tower"] == tower and v["experts"] is not None]
        if not own:
            continue
        facts = own[0]["experts"]
        counts = sorted(set(facts["counts"]))
        each = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        forms = dict.fromkeys(v["axes"]["moe"] for v in own if v["axes"]["head"] != "routing")
        line = f"{each}, {facts['top_k']} for each token, in blocks {_ranges(facts['blocks'])}; as {', '.join(forms)}"
        capped = next((v["experts"] for v in own if v["axes"]["moe"] == "capacity"), None)
        found.append((tower, line + (_capacity(capped) if capped else "")))
    return found


def _capacity(experts: dict[str, Any]) -> str:
    """What each expert takes of a sample, and what finds no place."""
    each = [size for sizes in experts["capacities"] for size in sizes]
    takes = (
        f"{min(each)} to {max(each)} tokens" if len(set(each)) > 1 else f"{each[0]} tokens" if each else ""
    )
    dropped = f"{100 * experts['dropped']:.2g} % of choices dropped" if experts["dropped"] is not None else ""
    said = ", ".join(filter(None, (takes and f"an expert takes {takes}", dropped)))
    return f" ({said})" if said else ""


def _ranges(numbers: Sequence[int]) -> str:
    """ "0-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _regions(record: dict[str, Any]) -> int:
    """Of a picture, in the detector's outputs."""
    return int(next(v["outputs"][0]["shape"][1] for v in record["variants"] if v["tower"] == "detector"))


def _of_detector(fidelity: dict[str, Any], figure: str) -> str:
    measured = fidelity.get("detection")
    return f"{measured[figure]:.1e}" if measured else "-"


def _print_reports(reports: list[dict[str, Any]]) -> None:
    from edgeclip.bench.render.words import clean

    for one in reports:
        figures = (
            [f"p50 {one['p50_ms']:.3g} ms, p90 {one['p90_ms']:.3g} ms"] if one["p50_ms"] is not None else []
        )
        figures += [f"{one['throughput_per_s']:.3g} a second"] if one["throughput_per_s"] is not None else []
        figures += [f"{one['warnings']} warnings"] if one["warnings"] else []
        ran = (
            f"{one['engine']}, {one['precision']}, {one['threads']} threads"
            if one["engine"]
            else "no scenario"
        )
        line = (
            f"report{'' if one['where'] == 'bundle' else ' (local)'}: {one['created'][:16]} on {one['device']}, {one['task']}, {ran}: "
            + ", ".join(figures)
        )
        console().print(clean(line))


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
