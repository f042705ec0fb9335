"""Types of faults in data, and counts of them."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass


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

# A fault and where it is.
Found = tuple[FaultType, object]


class Faults:
    """Counts of faults by type, with the first three examples of each."""

    def __init__(self, found: Iterable[Found] = ()) -> None:
        self.counts: Counter[FaultType] = Counter()
        self.examples: defaultdict[FaultType, list[str]] = defaultdict(list)
        self.add_all(found)

    def add(self, fault: FaultType, example: object) -> None:
        """Count a fault."""
        self.add_all([(fault, example)])

    def add_all(self, found: Iterable[Found]) -> None:
        """Count several faults, each with its example."""
        for fault, example in found:
            self.counts[fault] += 1
            if len(self.examples[fault]) < 3:
                self.examples[fault].append(str(example))

    def of(self, *severities: str) -> list[FaultType]:
        """List the types of some severities that were found, by severity."""
        return [
            fault for severity in severities for fault in self.counts if fault.severity == severity
        ]

    def describe(self, found: Iterable[FaultType]) -> str:
        """Describe types of faults in one line, such as ``1 x box with NaN (annotation 7)``."""
        return '; '.join(
            f'{self.counts[fault]} x {fault.name} ({self.examples[fault][0]})' for fault in found
        )
