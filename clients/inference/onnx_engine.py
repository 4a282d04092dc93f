"""The inference engine on ONNX Runtime: what `persephonee export` wrote, without PyTorch (Sec. 3.2).

Needs NumPy and ONNX Runtime only; the same interface as
`persephonee.clients.inference.inference_engine.InferenceEngine`.
"""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from persephonee.clients.errors import ExportError
from persephonee.clients.inference.engine import StagedEngine, top_1_softmax
from persephonee.clients.inference.exported_network import read_exported, read_graph


class OnnxEngine(StagedEngine[NDArray[np.float32]]):
    """Runs an exported network graph by graph; graphs that the policy can never reach are loaded by `explore` only.

    Args:
        folder: a folder that `export_onnx` wrote.
        threads: threads per operator, at least 1; 0 takes one for each core.

    Raises:
        ExportError: the folder holds no exported network, or a damaged one.
    """

    def __init__(self, folder: Path, *, threads: int = 0) -> None:
        self.exported = read_exported(folder)
        super().__init__(self.exported.policy, self.exported.input_shape, self.exported.num_classes)
        self._folder = folder
        self._threads = threads
        self._graphs: dict[str, onnxruntime.InferenceSession] = {}
        for step in self.exported.steps[: self.reachable_steps]:
            for name in (step.stage, step.head):
                if name is not None:
                    self._graphs[name] = self._load(name)

    def _start(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        return images

    def _advance(self, step: int, features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        files = self.exported.steps[step]
        outputs = self._run(files.stage, features)
        # the last exit has nothing but logits; a stage and its head can be one graph
        return outputs[0], outputs[-1] if files.head is None else self._run(files.head, outputs[0])[0]

    def _keep(self, features: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return features[rows]

    def _labels(self, logits: NDArray[np.float32]) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = logits.argmax(axis=1)
        return labels

    def _confidences(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        return top_1_softmax(logits)

    def _run(self, name: str, features: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        if name not in self._graphs:
            self._graphs[name] = self._load(name)
        outputs: list[NDArray[np.float32]] = self._graphs[name].run(None, {"input": features})
        return outputs

    def _load(self, name: str) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        # each graph has threads of its own, and only one graph works at a time: the others must not spin
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return onnxruntime.InferenceSession(
                read_graph(self._folder, name), options, providers=["CPUExecutionProvider"]
            )
        except ExportError:
            raise
        except Exception as error:  # ONNX Runtime raises a dozen kinds of errors that have no other base
            reason = str(error).splitlines()[0][:160]
            raise ExportError(f"ONNX Runtime refuses {self._folder / name} ({reason}): export it again.") from None
