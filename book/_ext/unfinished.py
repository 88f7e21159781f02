"""A build that failed, warned or was killed is not trusted by the next one.

Sphinx reads again only what has changed. After a failed build that is too little: the bad page would not be
read a second time and the next build would pass. So a marker stands while a build runs and stays if the build
does not end well; a build that finds it reads every page anew. Outputs in the execution cache are kept,
except entries that a killed build left half written.
"""

import shutil
from pathlib import Path

from jupyter_cache import get_cache
from jupyter_cache.cache.db import NbCacheRecord
from sphinx.application import Sphinx
from sphinx.config import Config


def marker(app: Sphinx) -> Path:
    return Path(app.doctreedir) / "unfinished"


def begin(app: Sphinx, config: Config) -> None:
    """Runs before Sphinx loads what it remembers of the last build."""
    if marker(app).exists():
        (Path(app.doctreedir) / "environment.pickle").unlink(missing_ok=True)
        sweep(Path(app.outdir).parent / ".jupyter_cache")
    marker(app).parent.mkdir(parents=True, exist_ok=True)
    marker(app).touch()


def sweep(folder: Path) -> None:
    """Drop the cache's entries that cannot be read: a record is written before its notebook is."""
    if not folder.exists():
        return
    cache = get_cache(folder)
    for record in cache.list_cache_records():
        try:
            cache.get_cache_bundle(record.pk)
        except Exception:
            NbCacheRecord.remove_record(record.pk, cache.db)
            shutil.rmtree(folder / "executed" / record.hashkey, ignore_errors=True)


def end(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and not app._warncount:
        marker(app).unlink()


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", begin)
    app.connect("build-finished", end, priority=999)  # last: what fails at the end has failed, too
    return {"parallel_read_safe": True, "parallel_write_safe": True}
