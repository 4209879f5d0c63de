"""report.html: what a run did, on one page that needs no script and asks nobody for anything.

Every text of the run (names, questions, answers, the recipe) is escaped and has its control
characters made visible; the page's own policy forbids scripts and requests besides.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from mull.errors import TrainError
from mull.harmless import visible
from mull.train.figures import NONE, count, dollars, duration, energy, number, percent
from mull.train.report_answers import answers_section
from mull.train.report_curves import curves_section
from mull.train.report_data import RunData, StageData, read_run
from mull.train.report_table import main_eval, mean_of_stage, scored_stages, table_section
from mull.train.run_folder import REPORT_NAME
from mull.train.state import reason

_STATUS = {
    "done": "finished",
    "running": "not finished: the figures are those so far",
    "failed": "ended by an error: the figures are those before it",
    "interrupted": "interrupted: the figures are those so far",
    "budget": "ended by its budget",
}
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(run_folder: Path) -> Path:
    """Write (or write anew) the report of a run, finished or not; returns its path.

    Raises TrainError when the disk refuses; an earlier report is then untouched.
    """
    path = run_folder / REPORT_NAME
    scratch = path.with_name(path.name + ".new")
    try:
        page = report_page(read_run(run_folder))
        with scratch.open("w", encoding="utf-8") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise TrainError(f"{path}: could not be written ({reason(error)})") from error
    return path


def report_page(run: RunData) -> str:
    style = resources.files("mull.train").joinpath("report.css").read_text(encoding="utf-8")
    sections = (
        _head(run),
        table_section(run),
        curves_section(run),
        answers_section(run),
        _bill_section(run),
        _origin_section(run),
    )
    return visible(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(run.name)}: training report</title>\n<style>\n{style}</style>\n"
        f"</head>\n<body>\n<main>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def _head(run: RunData) -> str:
    status = str(run.manifest.get("status", "running"))
    stages = sum(not stage.is_half for stage in run.stages.values())
    about = f"<p>{escape(run.about)}</p>" if run.about else ""
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}"
        + (f" <small>{escape(more)}</small>" if more else "")
        + "</dd></div>"
        for name, value, more in _glance(run)
    )
    return (
        f'<header><h1>{escape(run.name)}</h1>\n<p class="soft">A training run of '
        f"{_number_of(stages, 'stage')}, {escape(_STATUS.get(status, status))}.</p>{about}"
        f'<dl class="glance">{tiles}</dl></header>\n'
    )


def _glance(run: RunData) -> Iterable[tuple[str, str, str]]:
    asked = main_eval(run)
    means = [(name, mean_of_stage(asked, name, ood=False)) for name in scored_stages(asked)]
    known = [(name, mean) for name, mean in means if mean is not None]
    if known:
        name, mean = known[-1]
        first_name, first = known[0]
        more = f"from {percent(first)} ({first_name})" if len(known) > 1 else ""
        yield f"pass@1, held out ({name})", percent(mean), more
    total = _total(run)
    yield "time", duration(_seconds(total)), ""
    if "joules" in total:
        yield "energy, from stated watts", energy(total["joules"]), ""
        yield "cost", dollars(total.get("dollars")), ""
    tokens = total.get("tokens_trained", 0.0) + total.get("tokens_sampled", 0.0)
    if tokens:
        yield "tokens trained and sampled", count(tokens), ""


def _total(run: RunData) -> dict[str, float]:
    names = {name for stage in run.stages.values() for name in stage.bill}
    return {name: sum(stage.bill.get(name, 0.0) for stage in run.stages.values()) for name in names}


def _seconds(bill: dict[str, float]) -> float:
    return bill.get("seconds", 0.0) + bill.get("repeated_seconds", 0.0)


def _bill_section(run: RunData) -> str:
    billed = [stage for stage in run.stages.values() if stage.bill]
    if not billed:
        return ""
    rows = [_bill_row(_stage_name(stage), stage.bill) for stage in billed]
    rows.append(_bill_row("all", _total(run), css=' class="sum"'))
    heads = ("time", "of it repeated", "energy", "kWh", "cost", "trained", "sampled", "FLOPs")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        "<section><h2>The bill</h2>\n<p>Energy is the stated power of the machine times seconds"
        f"{_prices(run)}. Repeated is work that an interruption made the run do again.</p>"
        '<div class="scroll"><table><caption>Time, energy, money and tokens by stage</caption>'
        f'<thead><tr><th scope="col">stage</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>\n"
    )


def _prices(run: RunData) -> str:
    bill = run.manifest.get("bill")
    machine = bill.get("machine") if isinstance(bill, dict) else None
    if not isinstance(machine, dict):
        return ""
    watts, hour, kwh = (
        number(machine.get(name)) or 0.0
        for name in ("watts", "dollars_per_hour", "dollars_per_kwh")
    )
    return f" ({watts:g} W; {dollars(hour)} an hour, {dollars(kwh)} a kWh)"


def _bill_row(name: str, bill: dict[str, float], css: str = "") -> str:
    repeated = bill.get("repeated_seconds") or None
    kwh = bill.get("kwh")
    cells = (
        duration(_seconds(bill)),
        duration(repeated),
        energy(bill.get("joules")),
        NONE if kwh is None else f"{kwh:.4f}",
        dollars(bill.get("dollars")),
        count(bill.get("tokens_trained")),
        count(bill.get("tokens_sampled")),
        count(bill.get("flops")),
    )
    row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr{css}><th scope="row">{escape(name)}</th>{row}</tr>'


def _stage_name(stage: StageData) -> str:
    return stage.name if stage.kind in ("", stage.name) else f"{stage.name} ({stage.kind})"


def _origin_section(run: RunData) -> str:
    manifest = run.manifest
    facts = [
        (name, _flat(manifest[key]))
        for name, key in (
            ("seed", "seed"),
            ("data", "data"),
            ("commit", "commit"),
            ("versions", "versions"),
            ("hardware", "hardware"),
            ("started", "started"),
            ("finished", "finished"),
            ("resumed", "resumes"),
        )
        if manifest.get(key) is not None
    ]
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    recipe = ""
    if run.recipe_text:
        recipe = (
            "<details><summary>The recipe, overrides and defaults included</summary>"
            f"<pre>{escape(run.recipe_text)}</pre></details>"
        )
    if not listed and not recipe:
        return ""
    return f'<section><h2>Where it comes from</h2><dl class="facts">{listed}</dl>{recipe}</section>'


def _flat(value: Any) -> str:
    """A manifest's value in one line."""
    if isinstance(value, dict):
        parts = [f"{key} {_flat(each)}" for key, each in value.items() if each not in (None, [])]
        return " · ".join(parts)
    if isinstance(value, list):
        return ", ".join(_flat(each) for each in value) or NONE
    return str(value)


def _number_of(number_of: int, thing: str) -> str:
    return f"{number_of} {thing}{'' if number_of == 1 else 's'}"
