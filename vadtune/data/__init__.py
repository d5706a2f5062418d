"""Incomplete datasets: data sources, missingness mechanisms, and the rows and cells that a search may see.

May import core and tables. Importing it reads no data and loads neither PyTorch nor scikit-learn.
"""

from vadtune.data.dataset import HeldOut, IncompleteDataset, MaskedRows, SearchData, hold_out
from vadtune.data.loading import load_dataset
from vadtune.data.missingness import MECHANISMS, Layout, MissingConfig, mask_sha256
from vadtune.data.scaler import Scaler
from vadtune.data.source import DataConfig, HoldoutConfig
from vadtune.data.sources import SOURCES, AnyDataConfig

__all__ = [
    "MECHANISMS",
    "SOURCES",
    "AnyDataConfig",
    "DataConfig",
    "HeldOut",
    "HoldoutConfig",
    "IncompleteDataset",
    "Layout",
    "MaskedRows",
    "MissingConfig",
    "Scaler",
    "SearchData",
    "hold_out",
    "load_dataset",
    "mask_sha256",
]
