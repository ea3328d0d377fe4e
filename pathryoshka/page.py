"""The dress of our pages: one file, no script, nothing from the net; readable on a phone, in the dark and on paper."""

from __future__ import annotations

from html import escape

# name -> (light, dark); each light value is unique, since it is what becomes `var(--name)`.
COLOURS = {
    "paper": ("#ffffff", "#14181d"),
    "ink": ("#1d2630", "#e8edf2"),
    "faint": ("#66717c", "#98a4b0"),
    "line": ("#d5dbe1", "#333c46"),
    "student": ("#0b5cc4", "#6cb0ff"),
    "pca": ("#b05200", "#ffa64d"),
    "start": ("#4d7c6f", "#7fc4b1"),
    "random": ("#8a8f98", "#8b95a1"),
    "teacher0": ("#8e2a8b", "#e08bdd"),
    "teacher1": ("#00786a", "#3fd0bb"),
    "teacher2": ("#9a3412", "#ff9b7a"),
    "teacher3": ("#5b5fc7", "#a9adff"),
    "teacher4": ("#6b6a00", "#cdcb4a"),
}
LIGHT = "; ".join(f"--{name}: {value}" for name, (value, _) in COLOURS.items())
DARK = "; ".join(f"--{name}: {value}" for name, (_, value) in COLOURS.items())

CSS = """
:root { color-scheme: light dark; --font: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  --good: #1a7f4b; --bad: #b3261e; --wash: #f4f6f8; --warn: #fff4d6; --warn-line: #d9a400; LIGHT }
@media screen and (prefers-color-scheme: dark) { :root { --good: #5fd39a; --bad: #ff8a80; --wash: #1c2229;
  --warn: #33290c; --warn-line: #a67c00; DARK } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--font) }
main { max-width: 62rem; margin: 0 auto; padding: 2.2rem 1.2rem 4rem }
h1 { font-size: 1.05rem; font-weight: 600; color: var(--faint); margin: 0 0 .6rem; letter-spacing: .01em }
h2 { font-size: 1.35rem; line-height: 1.25; margin: 3rem 0 .5rem }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem }
p { margin: .5rem 0; max-width: 46rem }
.lead { font-size: clamp(1.2rem, 2.6vw, 1.55rem); line-height: 1.4; max-width: 52rem; margin: 0 0 1.4rem }
.faint, figcaption, caption { color: var(--faint); font-size: .9rem }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); gap: .8rem; margin: 1.2rem 0 }
.card { background: var(--wash); border-radius: .6rem; padding: .9rem 1rem }
.card b { display: block; font-size: 1.75rem; line-height: 1.2; font-variant-numeric: tabular-nums }
.card span { color: var(--faint); font-size: .88rem; display: block }
.warn { background: var(--warn); border-left: 4px solid var(--warn-line); border-radius: .3rem; padding: .6rem .9rem;
  margin: 1rem 0; max-width: none }
.tag { display: inline-block; font-size: .75rem; font-weight: 700; letter-spacing: .04em; border-radius: .25rem;
  padding: .05rem .4rem; margin-left: .4rem; vertical-align: .12em; background: var(--warn); color: var(--ink);
  border: 1px solid var(--warn-line) }
figure { margin: 1rem 0 }
figure svg { width: 100%; height: auto; display: block }
figure .narrow { display: none }
figcaption { margin-top: .4rem; max-width: 46rem }
.scroll { overflow-x: auto; margin: .6rem 0; background: linear-gradient(90deg, var(--paper) 30%, transparent) 0 / 2rem,
  linear-gradient(270deg, var(--paper) 30%, transparent) 100% / 2rem, linear-gradient(90deg, var(--line), transparent)
  0 / .6rem, linear-gradient(270deg, var(--line), transparent) 100% / .6rem; background-repeat: no-repeat;
  background-attachment: local, local, scroll, scroll }
table { border-collapse: collapse; font-size: .93rem; font-variant-numeric: tabular-nums; min-width: 60% }
caption { text-align: left; padding-bottom: .3rem }
caption span { display: block; max-width: min(46rem, calc(100vw - 2rem)) }
th, td { padding: .38rem .8rem .38rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th { font-weight: 600; color: var(--faint) }
th:first-child, td:first-child, td:has(.bar) { text-align: left; color: var(--ink) }
td small { color: var(--faint) }
tr.student td { font-weight: 650 }
tr.student td small { font-weight: 400 }
.key { display: inline-block; width: .7rem; height: .7rem; border-radius: .15rem; margin-right: .5rem }
.bar { display: inline-block; height: .55rem; border-radius: .15rem; min-width: 2px;
  margin-right: 1rem; vertical-align: .05em }
.better { color: var(--good) } .worse { color: var(--bad) }
.queries { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1.6rem 2rem }
.query { display: grid; grid-template-columns: 5.4rem 1fr; gap: .3rem .9rem; align-items: start; break-inside: avoid }
.query > figure { margin: 1.25rem 0 0 }
.row { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: .3rem; margin-bottom: .4rem }
.row figure, .query figure { margin: 0 }
.query p { margin: 0; font-size: .78rem; color: var(--faint) }
.query img { width: 100%; display: block; border-radius: .25rem; border: 3px solid transparent }
.query figcaption { font-size: .72rem; line-height: 1.25; margin: .1rem 0 0; text-align: center; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap }
.worst { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.2rem, 1fr)); gap: .7rem; margin: .6rem 0 }
.worst figure { margin: 0 } .worst img { width: 100%; border-radius: .25rem }
.worst figcaption { font-size: .72rem; line-height: 1.25; margin: .1rem 0 0 }
.token-maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(19rem, 1fr)); gap: 1rem }
.tokens { margin: 0; break-inside: avoid } .tokens img { width: 6rem; height: 6rem; margin-right: .3rem;
  border-radius: .25rem; image-rendering: pixelated }
.cell { display: inline-block; min-width: 2.2rem; padding: 0 .3rem; border-radius: .2rem; text-align: right }
.same img { border-color: var(--good) } .other img { border-color: var(--bad); border-style: dashed }
pre { background: var(--wash); padding: 1rem; border-radius: .5rem; overflow-x: auto; font-size: .8rem }
details summary { cursor: pointer; color: var(--faint); padding: .3rem 0 }
ul { padding-left: 1.2rem; max-width: 46rem }
li { margin: .3rem 0 }
@media (max-width: 40rem) {
  main { padding: 1.4rem 1rem 3rem }
  figure .wide { display: none } figure .narrow { display: block }
  td small { display: block } th, td { padding-right: .6rem } td:first-child { white-space: normal; min-width: 7rem }
  .cards { grid-template-columns: 1fr 1fr; gap: .6rem } .card { padding: .7rem .8rem } .card b { font-size: 1.35rem }
}
@media print {
  body { font-size: 10.5pt } main { max-width: none; padding: 0 }
  figure .wide { display: block } figure .narrow { display: none }
  .cards { grid-template-columns: repeat(4, 1fr) } .queries { grid-template-columns: 1fr 1fr; gap: 1rem }
  .query { grid-template-columns: 3.4rem 1fr }
  figure, table, .card, .query { break-inside: avoid } h2, h3 { break-after: avoid } details { display: none }
}
""".replace("LIGHT", LIGHT).replace("DARK", DARK)


def capital(text: str) -> str:
    """The same, its first letter large."""
    return text[:1].upper() + text[1:]


def page(title: str, body: str) -> str:
    """A whole HTML file around `body`, which is HTML already."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def drawing(wide: str, narrow: str, caption: str, says: str) -> str:
    """A figure with its two shapes; `says` is read out in place of it."""
    return (
        f'<figure><div role="img" aria-label="{escape(says)}"><div class="wide">{wide}</div>'
        f'<div class="narrow">{narrow}</div></div><figcaption>{escape(caption)}</figcaption></figure>'
    )


def table(head: list[str], rows: list[tuple[str, list[str]]], caption: str = "") -> str:
    """`rows`: (class, cells); cells are HTML already, head and caption are text."""
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f"<tr{f' class={css!r}' if css else ''}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for css, row in rows
    )
    said = f"<caption><span>{escape(caption)}</span></caption>" if caption else ""
    name = escape(head[0] or caption, quote=True)
    inner = f"<table>{said}<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="group" tabindex="0" aria-label="{name}">{inner}</div>'
