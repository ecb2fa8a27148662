"""Stands for a board: a process that receives ONNX files, runs each, and answers what it took.

    python -m examples.device.board

prints its port, and then a line for each file. It needs onnxruntime and Linux.

A request is the length of the file in 8 bytes, and the file. The answer is a line of JSON: `latency_ms`, the median of
many runs at batch 1, and `memory_bytes`, the peak memory of the process that ran it; or `error`.
"""

from __future__ import annotations

import json
import resource
import socketserver
import statistics
import struct
import time

import numpy as np
import onnxruntime

NUM_RUNS = 20


class Request(socketserver.StreamRequestHandler):
    """One file. Each is run in a process of its own, so that it is known how much memory it takes."""

    def handle(self) -> None:
        """Receives a file, runs it and answers."""
        (length,) = struct.unpack(">Q", self.rfile.read(8))
        contents = self.rfile.read(length)
        try:
            answer: dict[str, object] = {"latency_ms": latency_ms(contents), "memory_bytes": peak_memory_bytes()}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        self.wfile.write(json.dumps(answer).encode() + b"\n")
        print(f"{length} bytes: {answer}", flush=True)


def latency_ms(contents: bytes) -> float:
    """Median time of a run of an ONNX model at batch 1, on inputs of zeros."""
    session = onnxruntime.InferenceSession(contents, providers=["CPUExecutionProvider"])
    inputs = {}
    for port in session.get_inputs():
        shape = [size if isinstance(size, int) else 1 for size in port.shape]
        inputs[port.name] = np.zeros(shape, np.int64 if port.type == "tensor(int64)" else np.float32)
    times = []
    for _ in range(NUM_RUNS):
        started = time.perf_counter()
        session.run(None, inputs)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def peak_memory_bytes() -> int:
    """Peak memory of this process, which Linux counts in KiB."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    with socketserver.ForkingTCPServer(("127.0.0.1", 0), Request) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
