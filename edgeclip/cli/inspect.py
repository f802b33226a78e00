"""`edgeclip inspect`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from edgeclip.cli.common import console, emit, json_option

if TYPE_CHECKING:
    from edgeclip.bench.report import Report
    from edgeclip.bundle import Bundle

LOCAL = 5  # newest local reports that are shown

EXAMPLES = """\b
Examples:
  edgeclip inspect nano
  edgeclip inspect clip-b32/ --memory --json
"""


@click.command(epilog=EXAMPLES)
@click.argument("bundle")
@click.option("--memory", is_flag=True, help="Estimate the resident memory of each tower before loading it.")
@json_option
def command(bundle: str, memory: bool, as_json: bool) -> None:
    """Show what a bundle is and how well it agrees with its source.

    BUNDLE is a folder, a .zip of one, hf:ORG/NAME, or nano. Shows model, variants, fidelity, licences and
    size, the latency reports that it holds, and the engines and reports that were made of it on this machine.
    """
    from edgeclip.bundle import open_bundle

    opened = open_bundle(bundle)
    record = _record(opened)
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
