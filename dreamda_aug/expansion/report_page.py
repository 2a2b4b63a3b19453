"""The report's HTML: one file, no requests, usable by keyboard and screen reader."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Picture:
    """An image on the page.

    Attributes:
        data: a data URI; "" if the image is not at hand.
        name: what stands below it.
        caption: what it is, in one sentence; also its text alternative.
        flags: what is wrong with it.
        synthetic: False for seed images.
    """

    data: str
    name: str
    caption: str
    flags: tuple[str, ...]
    synthetic: bool


@dataclass(frozen=True)
class Row:
    """A seed image and its replicas."""

    class_name: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Histogram:
    """Counts of a value over equal bins from ``low`` to ``high``."""

    title: str
    low: float
    high: float
    counts: tuple[int, ...]
    median: float
    mean: float


def render(
    *,
    title: str,
    total: int,
    warnings: Sequence[str],
    rows: Sequence[Row],
    histograms: Sequence[Histogram],
    class_table: Sequence[tuple],
    metrics: Sequence[tuple[str, str]],
    settings: Sequence[tuple[str, str]],
) -> str:
    """The page as text; every value is escaped."""
    classes = list(dict.fromkeys(row.class_name for row in rows))
    flags = sorted({flag for row in rows for p in row.pictures for flag in p.flags})
    shown = sum(picture.synthetic for row in rows for picture in row.pictures)
    warned = "".join(f"<li>{escape(text)}</li>" for text in warnings)
    sections = "".join(_section(name, [row for row in rows if row.class_name == name])
                       for name in classes)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<a class="skip" href="#pictures">Skip to the pictures</a>
<header>
<h1>{escape(title)}</h1>
<p>{total} images, <strong>all synthetic</strong>. This page shows {shown} of them.</p>
</header>
<main>
<section aria-labelledby="warnings-title">
<h2 id="warnings-title">Warnings</h2>
{f"<ul class='warnings'>{warned}</ul>" if warned else "<p>None.</p>"}
</section>
<section aria-labelledby="distributions-title">
<h2 id="distributions-title">Distributions</h2>
<p>Over all images in the dataset; images that a filter left out are not among them.</p>
<div class="charts">{"".join(map(_chart, histograms))}</div>
</section>
<section aria-labelledby="classes-title">
<h2 id="classes-title">Classes</h2>
<div class="scroll" tabindex="0" role="region" aria-label="Counts per class">
{_table(class_table)}</div>
</section>
{_metrics(metrics)}
<section id="pictures" tabindex="-1" aria-labelledby="pictures-title">
<h2 id="pictures-title">Pictures</h2>
<form class="controls" aria-label="Filter the pictures">
<label>Class <select id="class"><option value="">all</option>{_options(classes)}</select></label>
<label>Flag <select id="flag"><option value="">all</option><option value="*">any flag</option>
<option value="-">no flag</option>{_options(flags)}</select></label>
<output id="count" aria-live="polite">{shown} synthetic images shown</output>
</form>
{sections}
</section>
<section aria-labelledby="settings-title">
<h2 id="settings-title">Settings</h2>
<details><summary>Everything that the dataset was begun with</summary>
{_table([("setting", "value"), *settings])}</details>
</section>
</main>
<dialog id="large" aria-labelledby="large-caption">
<form method="dialog"><button id="close">Close</button></form>
<img id="large-image" alt="">
<p id="large-caption" aria-live="polite"></p>
<p><button id="previous" type="button">Previous</button>
<button id="next" type="button">Next</button></p>
</dialog>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def _section(name: str, rows: Sequence[Row]) -> str:
    body = "".join(
        f"<li class='row'><ul class='pictures'>{''.join(map(_picture, row.pictures))}</ul></li>"
        for row in rows
    )
    return (f"<section class='class' data-class='{escape(name)}'><h3>{escape(name)}</h3>"
            f"<ul class='rows'>{body}</ul></section>")


def _picture(picture: Picture) -> str:
    kind = "synthetic" if picture.synthetic else "seed"
    flags = escape("|".join(picture.flags))
    text = escape(picture.caption + "".join(f"; flag: {flag}" for flag in picture.flags))
    if picture.data:
        image = (f"<button type='button' class='open'><img src='{escape(picture.data)}' "
                 f"alt='{text}' loading='lazy'></button>")
    else:
        image = "<span class='missing'>not at hand</span>"
    marks = "".join(f"<span class='flag'>{escape(flag)}</span>" for flag in picture.flags)
    return (f"<li class='{kind}' data-flags='{flags}'>{image}"
            f"<span class='name'>{escape(picture.name)}</span>{marks}</li>")


def _chart(histogram: Histogram) -> str:
    """Bars with their counts as tooltips, and the whole in words for who cannot see them."""
    width, height, top = 360, 120, max(histogram.counts)
    step = width / len(histogram.counts)
    size = (histogram.high - histogram.low) / len(histogram.counts)
    bars = []
    for i, count in enumerate(histogram.counts):
        bar = height * count / top
        start = histogram.low + i * size
        bars.append(
            f"<rect x='{i * step + 1:.1f}' y='{height - bar:.1f}' width='{step - 2:.1f}' "
            f"height='{bar:.1f}'><title>{start:.3g} to {start + size:.3g}: {count}</title></rect>"
        )
    words = (f"{histogram.title}: from {histogram.low:.3g} to {histogram.high:.3g}, median "
             f"{histogram.median:.3g}, mean {histogram.mean:.3g}, {sum(histogram.counts)} images")
    return (
        f"<figure><svg role='img' aria-label='{escape(words)}' viewBox='0 0 {width} {height + 18}'>"
        f"{''.join(bars)}<line x1='0' x2='{width}' y1='{height}' y2='{height}'/>"
        f"<text x='0' y='{height + 14}'>{histogram.low:.3g}</text>"
        f"<text x='{width}' y='{height + 14}' text-anchor='end'>{histogram.high:.3g}</text></svg>"
        f"<figcaption>{escape(histogram.title)}. Median {histogram.median:.3g}, mean "
        f"{histogram.mean:.3g}, tallest bar {top} images.</figcaption></figure>"
    )


def _metrics(metrics: Sequence[tuple[str, str]]) -> str:
    if not metrics:
        return ""
    return (f"<section aria-labelledby='metrics-title'><h2 id='metrics-title'>Compared with the "
            f"real images</h2>{_table([('measure', 'value'), *metrics])}</section>")


def _table(rows: Sequence[tuple]) -> str:
    head, *body = rows
    header = "".join(f"<th scope='col'>{escape(str(cell))}</th>" for cell in head)
    lines = "".join(
        f"<tr><th scope='row'>{escape(str(first))}</th>"
        + "".join(f"<td>{escape(str(cell))}</td>" for cell in rest) + "</tr>"
        for first, *rest in body
    )
    return f"<table><thead><tr>{header}</tr></thead><tbody>{lines}</tbody></table>"


def _options(values: Sequence[str]) -> str:
    return "".join(f"<option value='{escape(value)}'>{escape(value)}</option>" for value in values)


_STYLE = """
:root { color-scheme: light dark; --line: #8888; --bar: #1f6fb2; --flag: #b3261e; --panel: #8881; }
@media (prefers-color-scheme: dark) { :root { --bar: #6db3f2; --flag: #ff8a80; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2rem; } h3 { font-size: 1rem; }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
:focus-visible { outline: 3px solid var(--bar); outline-offset: 2px; }
ul.rows, ul.pictures { list-style: none; margin: 0; padding: 0; }
ul.pictures { display: flex; flex-wrap: wrap; gap: .5rem; padding: .4rem 0; }
ul.pictures li { display: flex; flex-direction: column; align-items: center; width: 104px; }
li.row { border-top: 1px solid var(--line); }
button.open { padding: 0; border: 2px solid transparent; background: none; cursor: zoom-in; }
li.seed button.open, li.seed .missing { border: 2px solid var(--bar); }
button.open img { width: 96px; height: 96px; object-fit: contain; display: block;
  background: var(--panel); }
img[src^='data:image/png'] { image-rendering: pixelated; }
.missing { width: 96px; height: 96px; display: grid; place-items: center; font-size: .8rem; }
.name { font-size: .8rem; } .flag { font-size: .75rem; font-weight: 600; color: var(--flag); }
.flag::before { content: "\\2691\\a0"; }
.warnings li { border-left: 4px solid var(--flag); padding-left: .6rem; list-style: none;
  margin: .4rem 0; }
.warnings { padding: 0; }
.controls { position: sticky; top: 0; background: Canvas; padding: .5rem 0; display: flex;
  flex-wrap: wrap; gap: 1rem; align-items: center; border-bottom: 1px solid var(--line); }
select, button { font: inherit; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5rem; } .charts figure { margin: 0; width: 22rem; }
svg { width: 100%; } svg rect { fill: var(--bar); } svg line { stroke: currentColor; }
svg text { font-size: 12px; fill: currentColor; } figcaption { font-size: .9rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; font-weight: normal; }
thead th { font-weight: 600; }
dialog img { width: min(70vh, 80vw); display: block; margin: auto; }
dialog p { text-align: center; max-width: 80vw; }
[hidden] { display: none !important; }
"""

_SCRIPT = """
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const get = id => document.getElementById(id);
function passes(item) {
  const wanted = get('flag').value, flags = item.dataset.flags;
  return !wanted || (wanted === '*' ? flags : wanted === '-' ? !flags
    : flags.split('|').includes(wanted));
}
function update() {
  let count = 0;
  for (const section of all('.class')) {
    let inSection = 0;
    for (const row of all('.row', section)) {
      let inRow = 0;
      for (const item of all('.synthetic', row)) {
        item.hidden = !passes(item);
        inRow += !item.hidden;
      }
      row.hidden = !inRow;
      inSection += inRow;
    }
    const other = get('class').value && get('class').value !== section.dataset.class;
    section.hidden = other || !inSection;
    count += section.hidden ? 0 : inSection;
  }
  get('count').textContent = count + ' synthetic images shown';
}
let current = null;
function show(button) {
  current = button;
  const image = button.querySelector('img');
  get('large-image').src = image.src;
  get('large-image').alt = image.alt;
  get('large-caption').textContent = image.alt;
  if (!get('large').open) get('large').showModal();
}
function move(step) {
  const visible = all('button.open').filter(button => button.offsetParent);
  const next = visible[visible.indexOf(current) + step];
  if (next) show(next);
}
all('button.open').forEach(button => button.addEventListener('click', () => show(button)));
get('class').addEventListener('change', update);
get('flag').addEventListener('change', update);
get('previous').addEventListener('click', () => move(-1));
get('next').addEventListener('click', () => move(1));
get('large').addEventListener('keydown', event => {
  if (event.key === 'ArrowLeft') move(-1);
  if (event.key === 'ArrowRight') move(1);
});
get('large').addEventListener('close', () => current && current.focus());
"""
