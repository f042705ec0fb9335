"""ExecuTorch files, run with XNNPACK."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from graphlib import TopologicalSorter
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from executorch.devtools.backend_debug import get_delegation_info
from executorch.exir import to_edge_transform_and_lower
from executorch.exir.passes.constant_prop_pass import constant_prop_pass
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.partitioner import Partition
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from mmevit.runtime.sessions import read_metadata

from .networks import PerImageNetwork
from .programs import ExportJob, append_description, export_program
from .replacing import ReplaceFunctions

# ExecuTorch looks for flatc on PATH, where an environment that is not activated does not put it.
os.environ.setdefault('FLATC_EXECUTABLE', str(files('executorch.data.bin') / 'flatc'))

DTYPES = ('float32', 'float16', 'int8')
DYNAMIC = frozenset()


def write(job: ExportJob) -> None:
    """Write a .pte file of one shape; see :func:`mmevit.deploy.export`."""
    network, metadata = job.network, json.loads(job.metadata)
    if isinstance(network, PerImageNetwork):
        metadata['suppression'] = network.disable_nms()
    with ReplaceFunctions(FUNCTIONS):
        program = constant_prop_pass(export_program(job))
    if job.dtype == 'int8':
        program = quantize(program, job)
    edge: Any = to_edge_transform_and_lower(program, partitioner=[OrderedPartitioner()])
    breakdown = get_delegation_info(edge.exported_program().graph_module).delegation_by_operator
    counts = {name: count.non_delegated for name, count in breakdown.items() if name != 'getitem'}
    undelegated = {name: count for name, count in counts.items() if count}
    with job.path.open('wb') as file:
        edge.to_executorch().write_to_file(file)
    append_description(job.path, job, program, metadata, undelegated=undelegated)


def split(x: Tensor, sizes: int | Sequence[int], dim: int = 0) -> Sequence[Tensor]:
    """Do the same as :meth:`torch.Tensor.split`, into given sizes by slices, which XNNPACK runs."""
    if isinstance(sizes, int):
        return x.split(sizes, dim)
    ends = list(accumulate(sizes))
    return [SLICE(x, dim, end - size, end) for end, size in zip(ends, sizes, strict=True)]


def chunk(x: Tensor, chunks: int, dim: int = 0) -> Sequence[Tensor]:
    """Do the same as :meth:`torch.Tensor.chunk`, into equal parts by slices."""
    size, rest = divmod(x.shape[dim], chunks)
    return x.chunk(chunks, dim) if rest else split(x, [size] * chunks, dim)


SLICE = torch.ops.aten.slice.Tensor
FUNCTIONS: dict[Any, Any] = {Tensor.split: split, Tensor.chunk: chunk}


def quantize(program: ExportedProgram, job: ExportJob) -> ExportedProgram:
    """Quantize a network, except for softmax, products of variables and the decoding of boxes."""
    quantizer = FeatureQuantizer()
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    network: Any = program.module()
    for node in network.graph.nodes:
        if node.target is SLICE:
            # A slice needs the scale of its input, which the quantizer only gives to this one.
            node.target = torch.ops.aten.slice_copy.Tensor
    network = prepare_pt2e(network, quantizer)
    for batch in job.batches:
        network(*batch)
    return torch.export.export(convert_pt2e(network), job.inputs)


class FeatureQuantizer(XNNPACKQuantizer):
    """XNNPACK's quantizer, which leaves the decoding of boxes, ``Detector.predict``, as it is.

    Its filter function does not apply to concatenations, and it turns numbers that are added to
    indices into floats.
    """

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Return the graph unchanged."""
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate the nodes to quantize, none of which is in the decoding."""
        model = super().annotate(model)
        for node in model.graph.nodes:
            modules = node.meta.get('nn_module_stack', {}).values()
            if any('predict' in name.split('.') for name, _ in modules):
                node.meta.pop(Q_ANNOTATION_KEY, None)
        return model


class OrderedPartitioner(XnnpackPartitioner):
    """XNNPACK's partitioner, whose partitions can run one after the other.

    Those of ExecuTorch 1.2 may wait for each other where a network has branches.
    """

    def generate_partitions(self, ep: ExportedProgram) -> list[Partition]:
        """Return partitions, numbered by how often XNNPACK's operators were left before them."""
        groups = {frozenset(group) for group in self.get_matched_nodes_from_configs(ep)}
        group_of = {node: group for group in groups for node in group}
        inputs: dict[frozenset[Node], set[frozenset[Node]]] = defaultdict(set)
        for node in ep.graph.nodes:
            group = group_of.setdefault(node, frozenset({node}))
            inputs[group] |= {group_of[other] for other in node.all_input_nodes} - {group}
        changes: dict[frozenset[Node], int] = {}
        partitions: dict[int, Partition] = {}
        for group in TopologicalSorter(inputs).static_order():
            delegated = group in groups
            before = [changes[i] + (i in groups and not delegated) for i in inputs[group]]
            number = changes[group] = max(before, default=0)
            if delegated:
                partition = partitions.setdefault(number, Partition(number))
                for node in group:
                    partition.add_node(node)
        return list(partitions.values())


def count_undelegated(path: str | Path) -> Counter[str]:
    """Return the number of operators of each type that XNNPACK does not run."""
    return Counter(read_metadata(path)['undelegated'])
