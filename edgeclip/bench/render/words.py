"""Numbers as people read them: three digits, with a unit; and names that come from outside, made safe to show."""

from __future__ import annotations

from edgeclip.bench.report import Quantile


def number(value: float | None) -> str:
    """Three significant digits, all digits above 1000: "0.0123", "12.3", "4,810", "1.2e-6"; "-" for None."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 999.5:
        return f"{value:,.0f}"
    text = f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}".replace("e-0", "e-")
    return text if "e" in text or "." not in text else text.rstrip("0").rstrip(".") or "0"


def fixed(value: float | None) -> str:
    """As `number`, but with its zeros: "12.0", for columns and intervals."""
    if value is None or value == 0 or abs(value) >= 99.95 or abs(value) < 1e-4:
        return number(value)
    digits = 1 if abs(value) >= 9.995 else 2 if abs(value) >= 0.9995 else 3
    return f"{value:.{digits}f}"


def interval(quantile: Quantile) -> str:
    """The value with its interval of 95 %, where there is one: "12.0 (11.8–12.3)"."""
    bounds = span(quantile)
    return f"{fixed(quantile.ms)} ({bounds})" if bounds else fixed(quantile.ms)


def span(quantile: Quantile) -> str:
    """The interval alone: "11.8–12.3"; "" where there is none."""
    if quantile.low is None or quantile.high is None:
        return ""
    return f"{fixed(quantile.low)}–{fixed(quantile.high)}"


def percent(share: float | None, signed: bool = False) -> str:
    """ "71 %", "4.2 %"; "+12 %" with `signed`."""
    if share is None:
        return "-"
    value = 100 * share
    text = f"{value:.0f}" if abs(value) >= 9.95 else f"{value:.1f}"
    return f"{'+' if signed and value > 0 else ''}{text} %"


def size(count: float | None) -> str:
    """Bytes: "350 MB", "1.9 GB"."""
    if count is None:
        return "-"
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{number(count / step)} {unit}"
    return f"{count:.0f} B"


def clean(text: str) -> str:
    """A text from outside without what a terminal obeys or no file can hold: escape codes, line ends, lone surrogates."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in " ".join(text.split()))


def a_few(count: int, what: str) -> str:
    """ "1 query", "600 queries"."""
    plural = what[:-1] + "ies" if what.endswith("y") else what + "es" if what.endswith("ch") else what + "s"
    return f"{count:,} {what if count == 1 else plural}"
