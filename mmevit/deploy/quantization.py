"""Static int8 quantization of ONNX files."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)
from torch import Tensor

from mmevit.utils.files import atomic_write


def quantize(path: str | Path, names: Sequence[str], batches: Iterable[Sequence[Tensor]]) -> None:
    """Quantize convolutions and linear layers of a float32 ONNX file, per channel, in place.

    Args:
        path: The file.
        names: Names of its inputs.
        batches: Inputs for calibration.
    """
    metadata = {item.key: item.value for item in onnx.load(path).metadata_props}
    with tempfile.TemporaryDirectory() as folder, atomic_write(path) as quantized:
        prepared = f'{folder}/prepared.onnx'
        with no_warnings():
            quant_pre_process(str(path), prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            str(quantized),
            CalibrationBatches(names, batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=['Conv', 'Gemm'],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options=dict(ActivationSymmetric=False, WeightSymmetric=True),
        )
        model = onnx.load(quantized)
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, quantized)


class CalibrationBatches(CalibrationDataReader):
    """Batches in the format of ONNX Runtime.

    Args:
        names: Names of the inputs.
        batches: The inputs.
    """

    def __init__(self, names: Sequence[str], batches: Iterable[Sequence[Tensor]]) -> None:
        self.names, self.batches = names, iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        """Return the arrays of the next batch by name, None after the last."""
        batch = next(self.batches, None)
        if batch is None:
            return None
        return {name: part.numpy() for name, part in zip(self.names, batch, strict=True)}


@contextmanager
def no_warnings() -> Iterator[None]:
    """Suppress logged warnings, which here are about the unprocessed model."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
