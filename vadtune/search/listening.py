"""The addresses that this process and those it has started listen on."""

from __future__ import annotations

import importlib
import ipaddress

from vadtune.search.adaptation import warn_once


def listening() -> set[tuple[int, str]]:
    """Returns the TCP addresses that this process and its descendants listen on, each with the process id."""
    psutil = importlib.import_module("psutil")  # comes with Ray, which adds it to sys.path
    this, found = psutil.Process(), set()
    for process in (this, *this.children(recursive=True)):
        try:
            connections = process.net_connections("tcp")
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        except psutil.AccessDenied:
            warn_once("the addresses that Ray listens on cannot be checked: this system does not show them")
            continue
        found |= {(process.pid, c.laddr.ip) for c in connections if c.status == psutil.CONN_LISTEN}
    return found


def is_loopback(address: str) -> bool:
    """Returns whether only this machine reaches an address."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback
