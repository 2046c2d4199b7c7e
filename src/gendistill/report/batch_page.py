"""A training batch, as `batch_view` reads it, as a self-contained HTML page."""

from html import escape
from string import Template

from gendistill.report.batch_view import CUT, NEWLINE, BatchView, Document, Token, label_of, quantity


def to_page(view: BatchView, *, title: str, rows: int | None = None) -> str:
    """A self-contained HTML page of the first `rows` sequences, all if None; nothing in it is loaded or runs."""
    names = {"learnt": view.noun, "context": "context"}  # by CSS class
    if view.problems:
        names["wrong"] = "another target than the token"
    shown = view.rows[:rows]
    hidden = len(view.rows) - len(shown)
    return PAGE.substitute(
        title=escape(title),
        totals="".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in view.totals().items()),
        verdict="".join(f"<p>{escape(line)}</p>" for line in view.verdict()),
        sound="unsound" if view.problems else "sound",
        legend=" ".join(f'<span class="{kind}">{name}</span>' for kind, name in names.items()),
        rows="\n".join(_row_as_html(row, number, view.noun) for number, row in enumerate(shown, 1)),
        rest=f"<p>{quantity(hidden, 'more sequences')}</p>" if hidden else "",
    )


def _row_as_html(row: list[Document], number: int, noun: str) -> str:
    documents = "\n".join(_document_as_html(document, place, noun) for place, document in enumerate(row, 1))
    return f"<section><h2>sequence {number}</h2>\n{documents}\n</section>"


def _document_as_html(document: Document, number: int, noun: str) -> str:
    label = escape(label_of(document, number, noun))
    if document.padding and not document.learnt:
        return f'<div class="padding">{label}</div>'  # without its tokens, as in the terminal
    cut = f'<p class="cut">{CUT}</p>' if document.cut else ""
    return f"<article><h3>{label}</h3><p>{''.join(map(_token_as_html, document.tokens))}</p>{cut}</article>"


def _token_as_html(token: Token) -> str:
    # Console break where the text's do, or a page of code would be one paragraph.
    line_break = "<br>" if NEWLINE in token.text else ""
    return f'<span class="{token.kind}" title="{token.note}">{escape(token.text)}</span>{line_break}'


# The policy lets nothing be loaded or run, whatever the batch's own text holds: it comes from the data.
PAGE = Template("""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>$title</title>
<style>
:root { color-scheme: light dark; --paper: #fff; --ink: #1f2328; --dim: #59636e; --edge: #d1d9e0;
        --green: #116329; --soft: #dafbe1; --red: #b3202a; --pale: #ffebe9; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #0d1117; --ink: #e6edf3; --dim: #9198a1; --edge: #3d444d;
          --green: #7ee787; --soft: #12311d; --red: #ff9492; --pale: #4a1418; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
       max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 0; flex: 0 0 100%; }
section { display: flex; flex-wrap: wrap; gap: .5rem; margin: 2rem 0; }
h3 { font-size: .85rem; font-weight: 600; color: var(--dim); margin: 0 0 .3rem; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; } dt { color: var(--dim); font-size: .85rem; }
dd { margin: 0; font-size: 1.1rem; font-variant-numeric: tabular-nums; }
.sound { color: var(--green); } .unsound, .cut { color: var(--red); font-weight: 600; }
.legend, article > p { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: .9rem; }
.legend > * { margin-right: 1.5rem; } .legend > em { color: var(--dim); font-style: normal; }
article, .padding { border: 1px solid var(--edge); border-radius: 4px; padding: .6rem .8rem; flex: 1 1 auto;
                    max-width: 100%; box-sizing: border-box; }
article { border-left-width: 4px; } .padding { flex: 0 0 100%; border-style: dashed; color: var(--dim);
                                               font-size: .85rem; }
article > p { margin: 0; line-height: 1.75; overflow-wrap: anywhere; }
article > .cut { margin-top: .3rem; }
span { margin-right: 1px; }
.context { color: var(--dim); } p > .context:hover, .learnt:hover { outline: 1px solid var(--ink); }
.learnt { color: var(--green); background: var(--soft); border-bottom: 2px solid var(--green); padding-bottom: 2px; }
.wrong { color: var(--red); background: var(--pale); text-decoration: wavy underline; font-weight: 700; }
</style>
<h1>$title</h1>
<dl>$totals</dl>
<div class="$sound">$verdict</div>
<p class="legend">$legend <em>↵ newline</em> <em>· space</em> <em>⟨F0⟩ byte of a character</em></p>
<p>Point at a token for its id, its position in the document and the weight with which it counts for the loss.</p>
$rows
$rest
</html>
""")
