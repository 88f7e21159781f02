"""A small book in a folder of its own, built with the real configuration and extensions but with a toy `adlearn`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]

HEADER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
adlearn:
  minutes_cpu: 3
  minutes_gpu: 2
---
"""

# A chapter's cell leaves a mark beside the book each time it is executed.
MARK = """
```{code-cell} ipython3
import sys
sys.path.insert(0, "../..")
from adlearn import NAME
print(NAME.value())
with open("../../executed-NAME", "a") as file:
    file.write("x")
```
"""

FILES = {
    "pyproject.toml": '[project.urls]\nRepository = "https://github.com/someone/elsewhere"\n',
    "requirements.txt": "",
    "_toc.yml": """\
format: jb-book
root: book/intro
parts:
  - caption: Part
    numbered: true
    chapters:
      - file: book/part/constructs
      - file: book/part/code
      - file: book/part/records
  - caption: Appendix
    chapters:
      - file: book/references
""",
    "book/references.bib": """\
@article{ruff, author={Ruff, Lukas and Vandermeulen, Robert and G{\\"o}rnitz, Nico}, title={One Class},
  journal={Journal}, year={2018}}
@article{zhou, author={Zhou, Chong and Paffenroth, Randy}, title={Robust}, journal={Journal}, year={2017}}
""",
    "book/intro.md": "# Welcome\n\nNo code here.\n",
    "book/references.md": "# References\n\n```{bibliography}\n```\n\n```{glossary}\nanchor\n: A sample.\n```\n",
    "book/part/code.md": HEADER + "(sec-code)=\n# Depends on code\n" + MARK.replace("NAME", "code"),
    "book/part/records.md": HEADER + "# Depends on data\n" + MARK.replace("NAME", "records"),
    "adlearn/__init__.py": "",
    "adlearn/code.py": "def value():\n    return 1\n",
    "adlearn/backbones.py": "def load():\n    return 1\n",
    "adlearn/records.py": "from pathlib import Path\n\n\ndef value():\n"
    '    return (Path(__file__).parent / "records" / "runs.csv").read_text()\n',
    "adlearn/records/runs.csv": "1\n",
    "book/part/constructs.md": HEADER
    + r"""
# Every `construct` of {math}`MyST`

% a comment

What {cite:t}`ruff` found {cite}`ruff,zhou`: see {ref}`sec-code`, {ref}`the section <target>`, {doc}`records`,
[the other](records.md), [](code.md), [the start](../intro.md), {numref}`fig-square`,
{numref}`Picture %s <fig-square>`, {eq}`eq-loss`.
Escaped \*stars\*, $a_b * c_d$, `code {cite}x`, *emphasis **in** it*, {src}`adlearn/code.py`,
{src}`the data <adlearn/records/runs.csv>`, {term}`anchor`, H{sub}`2`O, x{sup}`2`, <https://example.org>.[^foot]
Reached: {glue:text}`auroc:.2f`, and again {glue:text}`auroc:.1f`.

[^foot]: A footnote by {cite:t}`zhou`.

(target)=
## A section

$$
L = x \\
 + 1
$$ (eq-loss)

```{math}
:label: eq-two
y = 2
```

\begin{align*}
a &= b
\end{align*}

::::{note}
A list:

- one {cite:t}`ruff`
  1. deeper {eq}`eq-loss`
- two

  ```python
  kept = "{cite}`ruff`"
  ```

  :::{tip} First line
  Deep {eq}`eq-two`.
  :::
::::

:::{admonition} Titled `so`
:class: dropdown

Folded {numref}`tab-list`.
:::

Term
: Defined by {eq}`eq-loss`

| a | b |
|---|--:|
| $\|x\|$ | {cite:t}`zhou` |

```{list-table} A *table*
:name: tab-list
:header-rows: 1

* - head
  - two
* - $a$
  - b, {eq}`eq-loss`
```

```{figure} square.png
:name: fig-square
:alt: A square

Caption of {cite:t}`ruff`.
```

![inline](square.png)

> A quote of {eq}`eq-loss`.

```{code-cell} ipython3
:tags: [hide-input]

from IPython.display import Image, display

kind = "application/papermill.record/text/plain"
prefix = "application/papermill.record/"
display({kind: "0.93"}, raw=True, metadata={"scrapbook": {"name": "auroc", "mime_prefix": prefix}})
```

```{code-cell} ipython3
---
mystnb:
  figure:
    caption: Drawn, see {eq}`eq-loss`.
    name: fig-drawn
  image:
    alt: A square again
---
Image(filename="square.png")
```

```{code-cell} ipython3
:tags: [book-only]

only_in_the_book = True
```

```{exercise} Try
:label: ex-one

Do {eq}`eq-two`.
```

```{solution} ex-one
:class: dropdown

Done by {cite:t}`ruff`.
```

```{exercise-start}
:label: ex-two
```

Write code.

```{exercise-end}
```

```{solution-start} ex-two
:class: dropdown
```

Explained:

```{code-cell} ipython3
answer = 42
```

And after.

```{solution-end}
```

```{literalinclude} ../../adlearn/code.py
:pyobject: value
```

::::{tab-set}
:::{tab-item} One
First
:::
:::{tab-item} Two
Second
:::
::::

See {numref}`fig-drawn`.
""",
}

# The smallest picture: one red pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef"
    "0000000049454e44ae426082"
)


def write(root: Path) -> Path:
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "book/part/square.png").write_bytes(PIXEL)
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    config["sphinx"]["config"]["html_static_path"] = [str(ROOT / "book/_static")]
    config["sphinx"]["local_extensions"] = dict.fromkeys(config["sphinx"]["local_extensions"], str(ROOT / "book"))
    (root / "_config.yml").write_text(yaml.safe_dump(config))
    return root


def build(root: Path) -> subprocess.CompletedProcess:
    """As `make book` does, in a process of its own."""
    command = [Path(sys.executable).with_name("jupyter-book"), "build", ".", "-W", "-n", "--keep-going", "-q"]
    environment = os.environ | {"JUPYTER_PREFER_ENV_PATH": "1", "NO_COLOR": "1"}
    return subprocess.run(
        command, cwd=root, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
    )


def notebook(root: Path, name: str) -> dict:
    return json.loads((root / "book/notebooks" / f"{name}.ipynb").read_text())


def executions(root: Path) -> dict[str, int]:
    return {name: len((root / f"executed-{name}").read_text()) for name in ("code", "records")}
