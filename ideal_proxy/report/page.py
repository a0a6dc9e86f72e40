"""The report as one HTML page: no network, no script, readable in print, in the dark and by a screen reader.

The page is made of the numbers of `report.json` and of figures, nothing else; every text from outside is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ideal_proxy.report.plot_style import THEME
from ideal_proxy.report.text import proxy_text
from ideal_proxy.terminal import duration

FORMAT = "ideal-proxy/report/1"
MARKS = {"improves": ("✓", "good"), "no better than base": ("=", "same"), "not enough evidence": ("?", "open")}
DARK = {
    "ink": "#e6e9ed", "muted": "#9aa4b0", "grid": "#333a43", "paper": "#171b21", "noise": "#4a525d", "blue": "#56b4e9",
    "vermillion": "#ff8c42", "green": "#2fc79b", "purple": "#e3a1c6", "sky": "#9bd3f5", "orange": "#f0b840",
    "yellow": "#e6d94a",
}  # fmt: skip
STYLE = """
:root{color-scheme:light dark;--font:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
%(light)s;--back:#f4f6f8;--link:#005a8c}
@media (prefers-color-scheme:dark){:root{%(dark)s;--back:#0e1116;--link:#7cc4f0}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:16px/1.5 var(--font)}
main{max-width:1040px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.5rem;margin:.2em 0 .6em;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 .4em}
h3{font-size:1rem;margin:1.2em 0 .2em;overflow-wrap:anywhere}
p{margin:.4em 0;max-width:46em;overflow-wrap:anywhere}
section,header{background:var(--paper);border:1px solid var(--grid);border-radius:8px;padding:18px 20px;margin:0 0 16px}
.verdict{display:flex;gap:14px;align-items:flex-start;font-size:1.1rem}
.mark{flex:none;width:2.2rem;height:2.2rem;border-radius:50%%;display:grid;place-items:center;font-weight:700;
border:2px solid}
.good{color:var(--blue)}.same{color:var(--muted)}.open{color:var(--vermillion)}
.verdict p{margin:0;font-weight:600}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:16px 0 4px;padding:0}
.tiles div{border:1px solid var(--grid);border-radius:6px;padding:8px 12px}
.tiles dt{color:var(--muted);font-size:.85rem}.tiles dd{margin:0;font-size:1.15rem;font-weight:600}
.tiles dd small{font-weight:400;font-size:.8rem;color:var(--muted);display:block}
nav{font-size:.9rem;margin:0 0 16px;display:flex;flex-wrap:wrap;gap:2px 14px}
a{color:var(--link)}
figure{margin:8px 0 4px;overflow-x:auto}
figure svg{width:100%%;height:auto;display:block}
@media (max-width:640px){figure svg{min-width:600px}}
.note,figcaption{color:var(--muted);font-size:.9rem}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;margin:10px 0;font-variant-numeric:tabular-nums}
th,td{padding:3px 12px 3px 0;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
th{color:var(--muted);font-weight:600}
th.t,td.t{text-align:left;white-space:normal;overflow-wrap:break-word;min-width:9em}
td.n{color:var(--muted)}
details{margin:8px 0}summary{cursor:pointer;color:var(--link)}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
pre{background:var(--back);border:1px solid var(--grid);border-radius:6px;padding:10px 12px;overflow-x:auto}
ul{margin:.4em 0;padding-left:1.2em}li{overflow-wrap:anywhere}
.warn{border-left:4px solid var(--vermillion);padding-left:12px}
@media print{body{background:none}section,header{break-inside:avoid;border:none;padding:8px 0}nav{display:none}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One figure of the page.

    Attributes:
        name: what the page calls it, `response-…` for curves.
        title: what it shows, not escaped.
        svg: the element.
    """

    name: str
    title: str
    svg: str


def escape(text: Any) -> str:
    """Make any text safe inside HTML and its attributes.

    Args:
        text: what to show.

    Returns:
        str: escaped text, without control characters.
    """
    shown = "".join(c for c in str(text) if c.isprintable() or c == " ")
    return html.escape(shown, quote=True)


def page(numbers: dict[str, Any], pictures: Sequence[Picture]) -> str:
    """Compose the page.

    Args:
        numbers: as `report.json` holds them.
        pictures: the figures.

    Returns:
        str: an HTML document.
    """
    by_name = {picture.name: picture for picture in pictures}
    curves = [picture for picture in pictures if picture.name.startswith("response-")]
    sections = [
        ("volumes", "Volumes", _volumes(numbers, by_name)),
        ("losses", "Losses", _losses(numbers, by_name)),
        ("curves", "Response curves", _curves(numbers, curves)),
        ("matrix", "What each domain does", _matrices(numbers, by_name)),
        ("fit", "How good the fit is", _fit(numbers, by_name)),
        ("movement", "How sure the volumes are", _movement(numbers, by_name)),
        ("pareto", "Trade-offs", _pareto(numbers, by_name)),
        ("cost", "Cost of the search", _cost(numbers, by_name)),
        ("health", "Data health", _health(numbers)),
        ("repeat", "How to repeat it", _repeat(numbers)),
    ]
    style = STYLE % {
        key: ";".join(f"--{n}:{c}" for n, c in theme.items()) for key, theme in (("light", THEME), ("dark", DARK))
    }
    body = [
        _header(numbers, by_name),
        "<nav aria-label='Sections'>"
        + "".join(f"<a href='#{key}'>{title}</a>" for key, title, _ in sections)
        + "</nav>",
        *(f"<section id='{key}'><h2>{title}</h2>{content}</section>" for key, title, content in sections),
    ]
    title = escape(f"{numbers['name']}: {numbers['verdict']['answer']}")
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{style}</style></head>\n<body><main>\n"
        + "\n".join(body)
        + "\n</main></body></html>\n"
    )


def _variables(theme: dict[str, str]) -> str:
    return ";".join(f"--{name}:{colour}" for name, colour in theme.items())


def _header(numbers: dict[str, Any], pictures: dict[str, Picture]) -> str:
    verdict, predicted = numbers["verdict"], numbers["predicted_gain"]
    mark, kind = MARKS.get(verdict["answer"], ("·", "same"))
    gain, cost = verdict["gain"], numbers["cost"]
    holds = (
        "The mixture file holds the proposal."
        if numbers["adopted"]
        else "The mixture file keeps the base; the proposal below was not adopted."
    )
    floor = verdict["noise_floor"]
    tiles = [
        ("verified gain", f"{gain['value']:+.2%}", _range(gain)),
        ("noise floor", f"±{floor:.2%}", f"of {verdict['pairs']} pairs"),
        ("predicted gain", f"{predicted['value']:+.2%}", f"{_range(predicted)}, optimistic"),
        (
            "proxy runs",
            f"{cost['runs']}",
            f"{cost['rounds']} round{_s(cost['rounds'])}, {duration(cost['seconds'])} of training",
        ),
    ]
    shown = "".join(f"<div><dt>{t}</dt><dd>{value}<small>{note}</small></dd></div>" for t, value, note in tiles)
    warnings = "".join(f"<li>{escape(text)}</li>" for text in numbers["warnings"])
    return (
        f"<header><h1>{escape(numbers['name'])}</h1>"
        f"<div class='verdict'><span class='mark {kind}' aria-hidden='true'>{mark}</span>"
        f"<p>{escape(_sentence(verdict['sentence']))}</p></div>"
        f"<p>{holds} Noise floor: with {verdict['pairs']} pairs a gain within ±{floor:.2%} cannot be told from none; "
        f"one run's loss varies by {numbers['noise']['run']:.2%}, a seed shifts all its runs by "
        f"{numbers['noise']['seed']:.2%}. The interval's one-sided level is {verdict['level']:.2%}: 95% overall, "
        "divided over every planned look.</p>"
        + (f"<p><strong>{escape(_sentence(numbers['pays']))}</strong></p>" if numbers["pays"] else "")
        + (f"<p>{escape(_sentence(numbers['trust_text']))}</p>" if numbers.get("trust_text") else "")
        + f"<dl class='tiles'>{shown}</dl>"
        + _figure(pictures.get("verdict"))
        + (f"<div class='warn'><strong>Warnings</strong><ul>{warnings}</ul></div>" if warnings else "")
        + "</header>"
    )  # fmt: skip


def _volumes(numbers: dict[str, Any], pictures: dict[str, Picture]) -> str:
    rows = [
        (
            d["name"], f"{d['available']:,}", f"{d['base_rows']:,}", f"{d['proposal_rows']:,}", _change(d["change"]),
            f"{d['base_tokens']:,}", f"{d['tokens']:,}", f"{d['base_share']:.1%}", f"{d['share']:.1%}",
            f"{d['base_repeat']:.2f}×", f"{d['repeat']:.2f}×",
        )
        for d in numbers["domains"]
    ]  # fmt: skip
    header = ("domain", "available", "base rows", "rows", "change", "base tokens", "tokens", "base share", "share",
              "base repeat", "repeat")  # fmt: skip
    active = "".join(f"<li>{escape(text)}</li>" for text in numbers["optimum"]["active"])
    return (
        _figure(pictures.get("volumes"))
        + _figure(pictures.get("shares"))
        + _table(header, rows)
        + "<p class='note'>Shares are of tokens; tokens are those of the proxies' tokenizer.</p>"
        + f"<p>{escape(_sentence(numbers['optimum']['scope']))}</p>"
        + (f"<p>Constraints that bind:</p><ul>{active}</ul>" if active else "<p>No constraint binds.</p>")
    )


def _losses(numbers: dict[str, Any], pictures: dict[str, Picture]) -> str:
    rows = [
        (
            c["name"], f"{c['base_loss']:.4f}", f"{c['proposal_loss']:.4f}", _percent(c["verified"]),
            _percent_range(c["verified"]), _percent(c["predicted"]), _percent_range(c["predicted"]),
        )
        for c in numbers["capabilities"]
    ]  # fmt: skip
    header = ("capability", "base, nats", "proposal, nats", "verified", "interval", "predicted", "interval")
    judged = [(c["name"], c["metric"]) for c in numbers["capabilities"] if c.get("metric")]
    scores = [
        (
            name, m["command"] or m["python"], "higher" if m["higher_is_better"] else "lower", f"{m['base']:.4g}",
            f"{m['proposal']:.4g}", f"{m['verified']['value']:+.3g}", _score_range(m["verified"]),
            f"{m['predicted']['value']:+.3g}", f"{m['noise']:.2g}", f"{m['scale']:.3g}",
        )
        for name, m in judged
    ]  # fmt: skip
    score_header = ("capability", "metric", "better", "base", "proposal", "verified", "interval", "predicted", "noise",
                    "scale")  # fmt: skip
    metrics = (
        "<h3>Metrics, which judge instead of the loss</h3>"
        + _table(score_header, scores)
        + "<p class='note'>In each metric's own unit; verified and predicted are differences from base. The objective "
        "counts a difference over its scale as it counts a relative change of a loss. Noise is of one run.</p>"
        if judged
        else ""
    )
    return (
        "<p>Verified: fresh seeds, reference rows that the search never saw. Predicted: from the fit, for the mean of "
        "the first pairs.</p>"
        + _figure(pictures.get("losses"))
        + _table(header, rows)
        + "<p class='note'>Losses are nats per supervised token of the proxies.</p>"
        + metrics
    )


def _score_range(bound: dict[str, float]) -> str:
    return f"{bound['lower']:+.3g} to {bound['upper']:+.3g}"


def _curves(numbers: dict[str, Any], curves: Sequence[Picture]) -> str:
    unit = numbers["budget"]["unit"]
    kept = (
        "Along a curve one domain's rows vary and the other domains shrink or grow in proportion, so that the total "
        f"of {unit} stays, as in the search."
        if numbers["budget"]["mode"] == "keep"
        else "Along a curve one domain's rows vary and the others stay."
    )
    figures = "".join(f"<h3>{escape(picture.title)}</h3>{_figure(picture)}" for picture in curves)
    more = (
        "<p class='note'>With so many domains the page shows those that each capability answers to most; all are in "
        "<code>figures/</code> and <code>report.json</code>.</p>"
        if numbers["curves_left_out"]
        else ""
    )
    return (
        f"<p>{kept} Runs had other mixtures: each is drawn where the fit moves it onto the curve. Shaded where rows "
        f"repeat.</p>{more}{figures}"
    )


def _matrices(numbers: dict[str, Any], pictures: dict[str, Picture]) -> str:
    names = [d["name"] for d in numbers["domains"]]
    unit = escape(numbers["responses"]["unit"])
    blocks = []
    for key, figure, text in (
        ("rows_added", "responses", "More rows of one domain, the others stay: a longer run."),
        ("same_total", "mixing", "More of one domain at the same number of steps: the others get less."),
    ):
        matrix = numbers["responses"][key]
        rows = [
            (c["name"], *(f"{v:+.4f} ± {e:.4f}" for v, e in zip(values, errors, strict=True)))
            for c, values, errors in zip(numbers["capabilities"], matrix["values"], matrix["errors"], strict=True)
        ]
        blocks.append(
            f"<h3>{text}</h3>{_figure(pictures.get(figure))}"
            f"<details><summary>Numbers (∂L/∂log rows, {unit})</summary>"
            f"{_table(('capability', *names), rows)}</details>"
        )
    return (
        "<p>At the base mixture, from the fit. Blue lowers the loss, orange raises it; grey cells are within noise "
        "(their 90% interval holds zero); ± is one standard error.</p>" + "".join(blocks) + _measured(numbers, names)
    )


def _measured(numbers: dict[str, Any], names: list[str]) -> str:
    """Show the responses that gradients measured at base, beside the fit's."""
    found = numbers.get("gradients")
    if not found or "M" not in found:
        return f"<p class='note'>{escape(found['note'])}.</p>" if found else ""
    scale = found["scale"] or [1.0] * len(found["M"])
    rows = [
        (
            c["name"],
            *(
                "" if v is None or e is None else f"{s * v:+.4g} ± {s * e:.2g}{'?' if doubt else ''}"
                for v, e, doubt in zip(values, errors, doubts, strict=True)
            ),
        )
        for c, s, values, errors, doubts in zip(
            numbers["capabilities"], scale, found["M"], found["se"], found["unresolved"], strict=True
        )
    ]
    unit = "nats, by the scales that the fit gave them" if found["scale"] else "any unit: each row up to a factor"
    return (
        f"<h3>The same, measured by gradients of the proxies trained at base ({escape(found['method'])})</h3>"
        f"<p>{escape(found['note'])}.</p>"
        f"<details><summary>Numbers (∂L/∂log w at fixed steps, {unit}; ? within two standard errors of zero)</summary>"
        f"{_table(('capability', *names), rows)}</details>"
    )


def _fit(numbers: dict[str, Any], pictures: dict[str, Picture]) -> str:
    words = {
        "left out": "left out of the fit in turn",
        "later": "a later round's swarm",
        "fresh": "the check, fresh seeds",
    }
    summary = [
        (words.get(s["kind"], s["kind"]), f"{s['runs']}", f"{s['error']:.2%}", f"{s['bias']:+.2%}")
        for s in numbers["held_out"]["summary"]
    ]
    rows = [
        (
            f["name"], _number(f["rank_correlation"], ".2f"), _number(f["relative_error"], ".2%"),
            _number(f["relative_noise"], ".2%"), f"{f['weights'][0]:.0%}", f"{1 - f['weights'][0]:.0%}",
            "yes" if f["harm"] else "no",
        )
        for f in numbers["fit"]
    ]  # fmt: skip
    warnings = "".join(f"<li>{escape(f['warning'])}</li>" for f in numbers["fit"] if f["warning"])
    return (
        _figure(pictures.get("held-out"))
        + _table(("runs the fit did not see", "runs", "error", "bias"), summary)
        + _table(("capability", "rank correlation", "error", "noise of a run", "law", "process", "harm term"), rows)
        + "<p class='note'>Error: root mean square, relative to the predicted loss at base. Rank correlation "
        "(Spearman) and error by capability are of runs left out in turn.</p>"
        + (f"<div class='warn'><ul>{warnings}</ul></div>" if warnings else "")
    )


def _movement(numbers: dict[str, Any], pictures: dict[str, Picture]) -> str:
    rows = [
        (
            d["name"],
            f"{d['base_rows']:,}",
            f"{d['proposal_rows']:,}",
            f"{d['bootstrap'][0]:,.0f}",
            f"{d['bootstrap'][1]:,.0f}",
        )
        for d in numbers["domains"]
    ]
    names = [d["name"] for d in numbers["domains"]]
    rounds = [
        (
            f"{r['round']}", r["answer"], f"{r['pairs']}", f"{r['gain']['value']:+.2%}", _range(r["gain"]),
            f"{r['predicted_gain']['value']:+.2%}",
        )
        for r in numbers["rounds"]
    ]  # fmt: skip
    header = ("round", "verdict", "pairs", "verified gain", "interval", "predicted gain")
    proposed = [(name, *(f"{r['rows'][i]:,}" for r in numbers["rounds"])) for i, name in enumerate(names)]
    return (
        "<p>The runs were re-weighted (Bayesian bootstrap), the law refitted and the volumes optimised again. A volume "
        "that moves far can be chosen freely within its range; one without a range is held by a constraint.</p>"
        + _figure(pictures.get("movement"))
        + _table(("domain", "base", "proposal", "5%", "95%"), rows)
        + "<h3>Rounds and the rows each proposed</h3>"
        + _table(header, rounds, left=2)
        + _table(("rows of", *(f"round {r['round']}" for r in numbers["rounds"])), proposed)
    )


def _pareto(numbers: dict[str, Any], pictures: dict[str, Picture]) -> str:
    front = numbers["pareto"]
    if "points" not in front:
        return f"<p>No front was traced: {escape(front['note'])}.</p>"
    names = [d["name"] for d in numbers["domains"]]
    rows = [
        (f"{p['first'] - 1:+.2%}", f"{p['second'] - 1:+.2%}", *(f"{p['rows'][name]:,}" for name in names))
        for p in front["points"]
    ]
    first, second = (escape(", ".join(front[key])) for key in ("first", "second"))
    return (
        f"<p>Under the same constraints, how far {second} can be spared at the cost of {first}. Predicted, so "
        "optimistic; no point of the front is better than another in both.</p>"
        + _figure(pictures.get("pareto"))
        + "<details><summary>Mixtures of the front</summary>"
        + _table((", ".join(front["first"]), ", ".join(front["second"]), *names), rows, left=0)
        + "</details>"
    )


def _cost(numbers: dict[str, Any], pictures: dict[str, Picture]) -> str:
    cost, proxy, plan = numbers["cost"], numbers["proxy"], numbers["plan"]
    rows = [
        (name, f"{s['runs']}", f"{s['tokens']:,}", _flops(s["flops"]), duration(s["seconds"]))
        for name, s in [*((s["stage"], s) for s in cost["stages"]), ("all", cost)]
    ]
    return (
        f"<p>{cost['runs']} runs of {escape(proxy_text(proxy))} on {proxy['fraction']:.0%} of the "
        f"volumes: {cost['tokens']:,} tokens, {_flops(cost['flops'])} FLOPs, {duration(cost['seconds'])} of training "
        f"(workers added up, {plan['workers']} side by side). The full-size base mixture is "
        f"{cost['base_tokens']:,.0f} tokens.</p>"
        + _figure(pictures.get("cost"))
        + _table(("stage", "runs", "tokens", "FLOPs", "training"), rows)
    )


def _flops(count: float | None) -> str:
    """Write the FLOPs of matrix products, counted run by run; a run directory of an earlier version has none."""
    return "–" if count is None else f"{count:.1e}"


def _health(numbers: dict[str, Any]) -> str:
    health = numbers["health"]
    domains = [
        (
            d["name"], f"{d['available']:,}", f"{d['tokens_per_row']:.1f}", f"{d['supervised_per_row']:.1f}",
            f"{d['longest']:,}", f"{d['truncated']:,}", f"{d['dropped']:,}", f"{d['reserved']:,}",
        )
        for d in health["domains"]
    ]  # fmt: skip
    capabilities = [
        (c["name"], f"{c['rows']:,}", f"{c['search_rows']:,}", f"{c['verify_rows']:,}", f"{c['supervised_tokens']:,}",
         f"{c['truncated']:,}")
        for c in health["capabilities"]
    ]  # fmt: skip
    findings = "".join(f"<li>{escape(text)}</li>" for text in health["findings"])
    found = f"<ul>{findings}</ul>" if findings else "<p>No duplicates, no leaks, nothing cut or dropped.</p>"
    return (
        found
        + _table(
            ("domain", "rows", "tokens a row", "supervised", "longest", "cut", "dropped", "for the warm start"), domains
        )
        + _table(("capability", "reference rows", "search", "verify", "supervised tokens", "cut"), capabilities)
    )


def _repeat(numbers: dict[str, Any]) -> str:
    repeat, rate = numbers["repeat"], numbers["learning_rate"]
    machine = repeat["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in repeat["versions"].items())
    facts = [
        ("first command", repeat["command"]),
        ("seed", repeat["seed"]),
        ("learning rate", f"{rate['learning_rate']:g} ({rate.get('chosen', '')})"),
        ("precision", f"{numbers['plan'].get('dtype', '')} on {numbers['plan'].get('device', '')}"),
        ("begun", repeat["time"]),
        ("versions", versions),
        ("source revision", repeat["git"] or "installed package"),
        (
            "machine",
            ", ".join(str(machine[k]) for k in ("system", "processor") if k in machine)
            + f", {machine.get('cores', '?')} cores",
        ),
    ]
    prints = [
        (name, entry["source"], entry["sha256"][:16])
        for kind in ("domains", "capabilities")
        for name, entry in repeat["fingerprints"][kind].items()
    ]
    return (
        "<p>In the run directory:</p><pre>ideal-proxy search config.yaml --out again\n"
        "ideal-proxy apply mixture.json --out data/mixed\n"
        "ideal-proxy scale-up mixture.json --model HF_ID_OR_PATH --baseline</pre>"
        "<p class='note'>Equal to the bit on the same machine, versions and threads a worker.</p>"
        + _table(("", ""), [(name, str(value)) for name, value in facts], left=2)
        + "<details><summary>Data fingerprints</summary>"
        + _table(("name", "source", "SHA-256, first 16"), prints, left=3)
        + "</details>"
    )


def _figure(picture: Picture | None) -> str:
    return "" if picture is None else f"<figure>{picture.svg}</figure>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lay out a table; every cell is escaped."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(
            f"<{tag}{' class=t' if k < left else ''}>{escape(cell)}</{tag}>" for k, cell in enumerate(cells)
        ) + "</tr>"  # fmt: skip

    head = f"<thead>{line('th', header)}</thead>" if any(header) else ""
    return f"<div class='scroll'><table>{head}<tbody>{''.join(line('td', row) for row in rows)}</tbody></table></div>"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _change(change: float | None) -> str:
    return "new" if change is None else f"{change:+.0%}"


def _percent(bound: dict[str, float]) -> str:
    return f"{bound['value'] - 1:+.2%}"


def _percent_range(bound: dict[str, float]) -> str:
    return f"[{bound['lower'] - 1:+.2%}, {bound['upper'] - 1:+.2%}]"


def _range(bound: dict[str, float]) -> str:
    return f"[{bound['lower']:+.2%}, {bound['upper']:+.2%}]"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _s(count: int) -> str:
    return "" if count == 1 else "s"
