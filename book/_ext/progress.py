"""Say which chapter is being executed, which of how many it is, and how long it took."""

import os
import time

from _ext.chapters import chapters
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment


class Progress:
    """Prints to standard output directly: Sphinx's own log is silenced by `-q`, which hides its noise."""

    def begin(self, app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
        known = chapters(env)
        self.queue = [doc for doc in docnames if doc in known]
        self.total = len(self.queue)
        self.done = 0
        print(f"{len(known)} chapters, {self.total} to read", flush=True)

    def open(self, app: Sphinx, docname: str, text: list[str]) -> None:
        if docname in self.queue:
            self.done += 1
            self.start = time.time()
            print(f"chapter {self.done} of {self.total}: {docname} … ", end="", flush=True)

    def close(self, app: Sphinx, doctree: object) -> None:
        docname = app.env.docname
        if docname in self.queue:
            run = NbMetadataCollector.get_exec_data(app.env, docname)
            kept = run and run["mtime"] < self.start
            print("from the cache" if kept else f"{time.time() - self.start:.1f} s", flush=True)


def setup(app: Sphinx) -> dict:
    # long work inside a chapter reports to this terminal, not into its page: see adlearn.runtime.progress
    os.environ.setdefault("ADLEARN_PROGRESS", "stderr")
    progress = Progress()
    # After fresh.py has chosen what is stale, before anything is parsed.
    app.connect("env-before-read-docs", progress.begin, priority=900)
    app.connect("source-read", progress.open)
    app.connect("doctree-read", progress.close)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
