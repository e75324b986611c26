"""Errors at the paths of the Model Context Protocol: those of JSON-RPC, whose message a client shows to its agent."""

from __future__ import annotations

from typing import Any

from .calls import Fault

_CODES = {504: -32001}  # as MCP's SDKs say that a request has had its time
_INVALID_REQUEST, _INTERNAL_ERROR = -32600, -32603


def write_fault(fault: Fault) -> dict[str, Any]:
    """An error of no request in particular, because its id is not read; a client takes it for the request it sent."""
    code = _CODES.get(fault.status, _INTERNAL_ERROR if fault.status >= 500 else _INVALID_REQUEST)
    data = {"type": fault.type, "request_id": fault.request_id}
    return {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": fault.message, "data": data}}
