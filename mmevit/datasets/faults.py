"""Types of faults in data, and counts of them."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class FaultType:
    """A type of fault.

    Args:
        name: What is wrong.
        consequence: What happens in training.
        severity: ``'fatal'`` if training is impossible or would be wrong, ``'fault'`` if data are
            lost, ``'note'`` if it may be intended.
    """

    name: str
    consequence: str
    severity: str = 'fault'


# Consequences.
STOPS = 'training does not start'
ENDS = 'ends training'
LEFT_OUT = 'left out'


@dataclass
class Faults:
    """Counts of faults by type, with the first three examples of each."""

    examples: dict[FaultType, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[FaultType] = field(default_factory=Counter)

    def add(self, fault: FaultType, example: object) -> None:
        """Count a fault."""
        self.counts[fault] += 1
        if len(self.examples[fault]) < 3:
            self.examples[fault].append(str(example))

    def add_all(self, found: Iterable[tuple[FaultType, object]]) -> None:
        """Count several faults, each with its example."""
        for fault, example in found:
            self.add(fault, example)

    def of(self, severity: str) -> list[FaultType]:
        """List the types of a severity that were found."""
        return [fault for fault in self.counts if fault.severity == severity]

    def describe(self, found: Iterable[FaultType]) -> str:
        """Describe some types of faults by count, name and first example, in one line.

        Example:
            >>> nan_box, faults = FaultType('box with NaN', LEFT_OUT), Faults()
            >>> faults.add(nan_box, 'annotation 7')
            >>> faults.describe([nan_box])
            '1 x box with NaN (annotation 7)'
        """
        return '; '.join(
            f'{self.counts[fault]} x {fault.name} ({self.examples[fault][0]})' for fault in found
        )
