"""What is said where Ray cannot be reached or does not start."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import ray

from pipeline.engine import OnRay


@pytest.fixture(autouse=True)
def not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other tests have started."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_not_waited_for(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked, which would try for minutes"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=rf"^Ray did not start at '{address}': .*refused"):
        OnRay(address).start()


def test_who_listens_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(ray, "init", lambda address, **_: asked.append(address))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        OnRay(address).start()
    assert asked == [address]


def test_a_node_that_is_too_slow_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(**_: Any) -> None:
        raise Exception("The current node\ntimed out")

    monkeypatch.setattr(ray, "init", too_slow)
    with pytest.raises(ConnectionError, match=r"^Ray did not start at 'local': The current node timed out$"):
        OnRay("local").start()
