"""Small forests of all levels, published as ALeRCE does, for the tests of models."""

from __future__ import annotations

import pickle
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier

FEATURES = ("Amplitude_1", "Power_rate_1/2", "W1-W2", "rb")
CLASSES = {
    "top": ("Periodic", "Stochastic", "Transient"),
    "Stochastic": ("AGN", "Blazar", "CV/Nova", "QSO", "YSO"),
    "Periodic": ("CEP", "DSCT", "E", "LPV", "Periodic-Other", "RRL"),
    "Transient": ("SLSN", "SNII", "SNIa", "SNIbc"),
}


def fitted(level: str, seed: int = 0) -> RandomForestClassifier:
    random = np.random.default_rng([seed, len(level)])
    labels = np.array(CLASSES[level])[random.integers(0, len(CLASSES[level]), 200)]
    return RandomForestClassifier(12, random_state=seed).fit(random.normal(size=(200, len(FEATURES))), labels)


ESTIMATORS = {level: fitted(level) for level in CLASSES}


NEW = {level: f"{level.lower()}_level_BRF_model.pkl" for level in CLASSES}
OLD = {level: f"{level.lower()}_level_RF_model.pkl" for level in CLASSES} | {"top": "hierarchical_level_RF_model.pkl"}


def published(folder: Path, names: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for level, estimator in ESTIMATORS.items():
        (folder / names[level]).write_bytes(pickle.dumps(estimator, 4))
    (folder / "features_RF_model.pkl").write_bytes(pickle.dumps(list(FEATURES)))
    return folder


class Server:
    """A server of files on 127.0.0.1 that misbehaves as told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.faults, self.asked = folder, [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                path = outer.folder / self.path.rpartition("/")[2]
                fault = outer.faults.pop(0) if outer.faults else None
                content = path.read_bytes() if path.is_file() else b""
                status = fault if isinstance(fault, int) else 200 if path.is_file() else 404
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if fault == "truncated" else content)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/pipeline/hierarchical_rf_1.1.0/"
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
