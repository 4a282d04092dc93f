"""The template of report.html (jinja2), self-contained: style and figures stand in the page.

A Python string and not a file of its own, since a Flower app bundle carries only some types of files.
"""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f4f5f7; --card: #ffffff; --ink: #222222; --dim: #5c6370; --line: #dfe2e7; --grid: #e4e6ea;
  --before: #d55e00; --after: #0072b2; --front: #009e73;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14161a; --card: #1d2025; --ink: #e6e8eb; --dim: #9aa2ae; --line: #343941; --grid: #343941;
    --before: #e69f00; --after: #56b4e9; --front: #1fbf92;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif; font-size: 16px;
}
main { max-width: 940px; margin: 0 auto; padding: 40px 20px 64px; }
header p.kicker { margin: 0; color: var(--dim); font-size: 14px; }
h1 { margin: 2px 0 14px; font-size: 30px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 44px 0 6px; font-size: 21px; line-height: 1.3; }
h3 { margin: 18px 0 8px; font-size: 16px; }
.card h3:first-child { margin-top: 0; }
p { margin: 0 0 12px; }
p.headline { font-size: 21px; line-height: 1.45; font-weight: 600; }
p.more { font-size: 17px; margin-bottom: 8px; }
p.see { color: var(--dim); margin-bottom: 10px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; }
.card svg { display: block; width: 100%; height: auto; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 10px; margin-top: 20px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tile .name { color: var(--dim); font-size: 13px; }
.tile .value { font-size: 24px; font-weight: 650; line-height: 1.35; white-space: nowrap; }
.tile .note { color: var(--dim); font-size: 13px; line-height: 1.4; }
.after { color: var(--after); } .before { color: var(--before); }
table { border-collapse: collapse; width: 100%; font-size: 15px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 9px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
td { white-space: nowrap; }
th { font-weight: 600; color: var(--dim); font-size: 13px; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
tr:last-child td { border-bottom: none; }
.wide { overflow-x: auto; }
.long { max-height: 460px; overflow-y: auto; }
table.words td, table.words th { text-align: left; white-space: normal; overflow-wrap: anywhere; }
table.words td:first-child { width: 30%; }
.config td:first-child { color: var(--dim); }
.config td { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px; padding: 4px 9px; }
.examples { display: flex; flex-wrap: wrap; gap: 12px; }
.example { margin: 0; width: 96px; text-align: center; font-size: 13px; line-height: 1.35; }
.example img {
  width: 96px; height: 96px; object-fit: contain; image-rendering: pixelated; background: #ffffff;
  border: 1px solid var(--line); border-radius: 6px; display: block; margin-bottom: 4px;
}
details { margin-top: 12px; } summary { cursor: pointer; color: var(--dim); margin-bottom: 8px; }
footer { margin-top: 44px; color: var(--dim); font-size: 13px; }
@media (max-width: 700px) {
  .tiles { grid-template-columns: repeat(2, 1fr); }
  main { padding: 24px 12px 48px; }
  h1 { font-size: 24px; } p.headline { font-size: 18px; } p.more { font-size: 16px; }
  .card { padding: 10px; }
  /* a figure keeps its size and is moved sideways: shrunk to a telephone its words would be 4 px high */
  section.whole > .card { overflow-x: auto; }
  .card svg { min-width: 620px; }
}
@media print {
  :root {
    --page: #ffffff; --card: #ffffff; --ink: #222222; --dim: #5c6370; --line: #d0d4da; --grid: #dddddd;
    --before: #d55e00; --after: #0072b2; --front: #009e73;
  }
  body { font-size: 12px; }
  main { max-width: none; padding: 0; }
  section.whole, .tile, tr, .example { break-inside: avoid; }
  h2, p.see { break-after: avoid; }
  h2 { margin-top: 26px; font-size: 16px; }
  p.headline { font-size: 16px; }
  p.more { font-size: 13px; }
  .tile .value { font-size: 18px; }
  .tile .name, .tile .note, table, th, .config td { font-size: 10.5px; }
  th, td { padding: 3px 6px; }
  .wide { overflow: visible; max-height: none; }
  .tiles { grid-template-columns: repeat(4, 1fr); }
}
"""

PAGE_START = """\
{% macro numbers(table) %}
<div class="card wide">
<table>
<thead><tr>{% for column in table.columns %}<th>{{ column }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody>
</table>
</div>
{% endmacro %}
{% macro statuses(rows) %}
<div class="card wide long"><table class="words">
<thead><tr><th>client</th><th>what happened</th></tr></thead>
<tbody>{% for row in rows %}
<tr><td>{{ row.client_id }}</td><td>{{ row.status }}</td></tr>{% endfor %}
</tbody></table></div>
{% endmacro %}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} – personal early exits</title>
<link rel="icon" href="data:,">
<style>{{ style }}</style>
</head>
<body>
<main>
"""
"""The head of a page, and macros for its tables; takes `title` and `style`."""

FIGURES = """\
{% for figure in figures %}
<section class="whole">
<h2>{{ figure.title }}</h2>
<p class="see">{{ figure.see }}</p>
<div class="card">{{ figure.svg }}</div>
</section>
{% endfor %}
"""
"""Takes `figures`, each with `title`, `see` and `svg`."""

TEMPLATE = (
    PAGE_START
    + """\
<header>
<p class="kicker">PersEPhonEE: early exits personalised on the user's device · round {{ summary.round }}</p>
<h1>{{ title }}</h1>
{% for sentence in headline %}<p class="{{ 'headline' if loop.first else 'more' }}">{{ sentence }}</p>
{% endfor %}
</header>

{% if tiles %}
<section class="tiles" aria-label="Key numbers">
{% for tile in tiles %}
<div class="tile"><div class="name">{{ tile.name }}</div><div class="value{{ ' ' + tile.look if tile.look }}">
{{- tile.value }}</div><div class="note">{{ tile.note }}</div></div>
{% endfor %}
</section>
{% endif %}

"""
    + FIGURES
    + """
{% if exits %}
<section class="whole">
<h2>Every exit in numbers</h2>
<p class="see">Means over {{ summary.counts.ok }} users, each counting the same. Cost: MACs of a network with
this exit alone, over the original network's. Helped and hurt: users for whom the exit became more or less
accurate. “Reaches the original”: users for whom it is now at least as accurate as their last exit. Kept: users whose
policy still has it.</p>
{{ numbers(exits) }}
</section>
{% endif %}

{% if sharing %}
<section class="whole">
<h2>Shared exits</h2>
{% for sentence in sharing.words %}<p class="see">{{ sentence }}</p>
{% endfor %}
{% if sharing.rows %}
{{ numbers(sharing) }}
{% endif %}
{% if sharing.left_out %}
{{ statuses(sharing.left_out) }}
{% endif %}
</section>
{% endif %}

<section class="whole">
<h2>One user shown as an example</h2>
{% if example_user %}
<p class="see">{{ example_user.words }}</p>
<div class="card">
{% for group in example_user.groups %}
<h3>{{ group.title }}</h3>
<div class="examples">
{% for example in group.examples %}
<figure class="example">
<img src="data:image/png;base64,{{ example.png }}" alt="an image of the class {{ example.label }}">
<figcaption><span class="before">{{ example.before }}</span> → <span class="after">{{ example.after }}</span>
{%- if example.label not in (example.before, example.after) %}<br>is {{ example.label }}{% endif -%}
</figcaption></figure>
{% endfor %}
</div>
{% else %}
<p>No answer changed on this user's test images.</p>
{% endfor %}
</div>
{% else %}
<p class="see">This run has no example user:
a server never receives its users' samples. <code>persephonee simulate</code>, which runs on the machine that owns the
data, adds one.</p>
{% endif %}
</section>

<section>
<h2>What was left out or failed</h2>
<p class="see">{{ left_out.words }}</p>
{% if left_out.rows %}
{{ statuses(left_out.rows) }}
{% endif %}
</section>

<section>
<h2>The settings of this run</h2>
<p class="see">Those that differ from the defaults, and what identifies the run.</p>
<div class="card wide"><table class="words config"><tbody>
{% for key, value in changed %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>
{% endfor %}
</tbody></table></div>
<details>
<summary>All other settings, versions and the machine</summary>
<div class="card wide"><table class="words config"><tbody>
{% for key, value in config %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>
{% endfor %}
</tbody></table></div>
</details>
</section>

<footer>Accuracies are of each user's own held-out test samples.
Costs are multiply-adds (MACs) per sample: of an exit, the backbone up to it and its head; of a policy, the mean over
samples, with the heads of all exits passed on the way. Drawn from exits.parquet, clients.parquet and rounds.parquet;
<code>persephonee report</code> draws it again.</footer>
</main>
</body>
</html>
"""
)
