"""Incomplete datasets: where values come from, which cells are missing, which rows are sealed."""

from vadtune.data.dataset import HeldOut, IncompleteDataset, MaskedRows, SearchData, hold_out, load_dataset
from vadtune.data.missingness import MECHANISMS, mask_sha256
from vadtune.data.scaler import Scaler
from vadtune.data.sources import SOURCES
from vadtune.data.sources.source import Layout

__all__ = [
    "MECHANISMS",
    "SOURCES",
    "HeldOut",
    "IncompleteDataset",
    "Layout",
    "MaskedRows",
    "Scaler",
    "SearchData",
    "hold_out",
    "load_dataset",
    "mask_sha256",
]
