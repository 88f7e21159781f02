"""The methods, one paper a file. Each name is imported when it is first used."""

from __future__ import annotations

import importlib

_HOMES = {
    "NearestNeighbors": "adlearn.methods.classic",
    "KMeans": "adlearn.methods.classic",
    "OneClassSVM": "adlearn.methods.classic",
    "KDE": "adlearn.methods.classic",
    "Gaussian": "adlearn.methods.classic",
    "FeatureDictionary": "adlearn.methods.classic",
    "AutoEncoder": "adlearn.methods.autoencoder",
    "MeanImage": "adlearn.methods.autoencoder",
    "VAE": "adlearn.methods.vae",
    "AnoGAN": "adlearn.methods.gan",
    "FastAnoGAN": "adlearn.methods.gan",
    "DeepSVDD": "adlearn.methods.deep_svdd",
    "GOAD": "adlearn.methods.goad",
    "TabularGOAD": "adlearn.methods.goad",
    "TwoStage": "adlearn.methods.two_stage",
    "CSI": "adlearn.methods.csi",
    "UninformedStudents": "adlearn.methods.students",
    "OnDescriptors": "adlearn.methods.students",
    "SPADE": "adlearn.methods.spade",
    "ViTSPADE": "adlearn.methods.vit_spade",
    "ViT": "adlearn.methods.vit",
    "Classifier": "adlearn.methods.metric_learning",
    "SimCLR": "adlearn.methods.simclr",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'adlearn.methods' has no attribute {name!r}: choose from {', '.join(__all__)}")


def __dir__():
    return sorted([*globals(), *__all__])
