"""Data sets, as tensors in [0, 1], from wheels, from a generator, or from the reader's disk.

| loader | what |
|---|---|
| `elpv` | real solar cells in electroluminescence, plain or with painted defects and their masks |
| `parts`, `parts_labelled` | drawn small objects, whole and damaged |
| `digits`, `moons`, `tabular` | small classics from scikit-learn |
| `cifar10` | the one-class benchmark of the papers |
| `mvtec`, `folder` | the reader's own images |
"""

from adlearn.data.base import Labelled, OneClass
from adlearn.data.cifar10 import cifar10
from adlearn.data.digits import digits
from adlearn.data.elpv import elpv, elpv_doubtful
from adlearn.data.folder import as_images, folder
from adlearn.data.moons import moons
from adlearn.data.mvtec import mvtec
from adlearn.data.parts import parts, parts_labelled
from adlearn.data.tabular import tabular

__all__ = ["Labelled", "OneClass", "as_images", "cifar10", "digits", "elpv", "elpv_doubtful", "folder", "moons",
           "mvtec", "parts", "parts_labelled", "tabular"]
