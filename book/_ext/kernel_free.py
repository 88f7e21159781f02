"""Let a slider and a Play button move their figure in a page that no kernel stands behind.

Two things on the theme's pages get in the way of the widget manager. Font Awesome swaps the `<i>` inside the Play
button for an `<svg>` which the button then no longer finds; and the manager typesets by a call of MathJax 2, while
the pages load MathJax 3. Both are mended by a few lines of script, ahead of everything else in the page.
"""

from sphinx.application import Sphinx

SCRIPT = """<script>
window.FontAwesomeConfig = { observeMutations: false };
document.addEventListener("DOMContentLoaded", () => {
  if (!window.MathJax) return;
  window.MathJax.Hub = {
    Queue: (...calls) => window.MathJax.startup.promise.then(() => window.MathJax.typesetPromise(
      calls.filter((call) => call[0] === "Typeset" && call[2]).map((call) => call[2])
    )),
  };
});
</script>"""


def prepend(app: Sphinx, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    context["metatags"] = SCRIPT + context.get("metatags", "")


def setup(app: Sphinx) -> dict:
    app.connect("html-page-context", prepend)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
