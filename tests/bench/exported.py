"""ONNX graphs of a checkpoint, exported by torch: float32, and int8 by ONNX Runtime's own dynamic quantisation."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from jina_local.bench.rivals import torch_model


def export(checkpoint: Path, task: str, work: Path) -> list[Path]:
    """The graphs of a checkpoint with one adapter merged, made below `work` if they are not there yet."""
    folder = work / f"{checkpoint.name}-onnx"
    graphs = [folder / "model.onnx", folder / "model_int8.onnx"]
    if not folder.exists():
        work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=work) as temp:
            made = Path(temp) / "onnx"
            made.mkdir()
            _export(checkpoint, task, made / graphs[0].name)
            _quantise(made / graphs[0].name, made / graphs[1].name)
            shutil.move(made, folder)
    return graphs


def _export(checkpoint: Path, task: str, graph: Path) -> None:
    import torch

    class States(torch.nn.Module):
        """The model with its states as the one output."""

        def __init__(self) -> None:
            super().__init__()
            self.model = torch_model(checkpoint, task)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids, mask = torch.ones((2, 9), dtype=torch.int64), torch.ones((2, 9), dtype=torch.int64)
    mask[0, 6:] = 0  # of a mask without zeros, transformers makes a graph without a mask
    axes = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=8192)}
    torch.onnx.export(States().eval(), (ids, mask), str(graph), dynamo=True, external_data=True,
                      input_names=["input_ids", "attention_mask"], output_names=["states"],
                      dynamic_shapes={"input_ids": axes, "attention_mask": axes}, verbose=False)  # fmt: skip


def _quantise(graph: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(graph), str(out), weight_type=QuantType.QInt8, use_external_data_format=True)
