"""The listing of a data set: its classes, and the names and labels of each split. Does not import torch."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from eltlab.common.errors import UserError

TEST_FOLDERS = ("test", "val", "valid", "validation")  # the first that exists is the test split
HOLD_OUT = 10  # if none exists, every tenth example of a class is a test example


@dataclass
class ListedSplit:
    """Names of examples relative to the root, and their labels. Sorted by label, then by name in natural
    order; sets in Parquet files keep the order of their rows."""

    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def append(self, name: str, label: int) -> None:
        self.names.append(name)
        self.labels.append(label)

    def hold_out(self) -> tuple["ListedSplit", "ListedSplit"]:
        """(train, test): every tenth example of each class becomes a test example."""
        train, test = ListedSplit(), ListedSplit()
        seen: Counter[int] = Counter()
        for name, label in zip(self.names, self.labels, strict=True):
            seen[label] += 1
            (train if seen[label] % HOLD_OUT else test).append(name, label)
        return train, test


@dataclass(frozen=True)
class Listing:
    root: Path
    classes: list[str]
    train: ListedSplit
    test: ListedSplit

    def check_class_count(self, classes: int) -> None:
        """Raises UserError if data.classes is a different number."""
        if len(self.classes) != classes:
            raise UserError(
                f"data.classes={classes}: {self.root} has {len(self.classes)} classes; choose another "
                f"data.root, or train with data.classes={len(self.classes)}"
            )

    def check_examples(self, unit: str = "images", held_out: str = "every tenth") -> None:
        """Raises UserError if a class has too few training examples, or there is no test example."""
        counts = Counter(self.train.labels)
        for label, name in enumerate(self.classes):
            if counts[label] < 2:
                raise UserError(
                    f"data.root={self.root}: class {name} has {counts[label]} training {unit}; each class "
                    "requires at least two"
                )
        if not self.test.names:
            raise UserError(
                f"data.root={self.root}: no test {unit}, because {held_out} of a class is held out and no "
                "class has ten; add more, or split them into train/CLASS/ and test/CLASS/"
            )


def natural_key(name: str) -> tuple[list[str | int], str]:
    """A sort key that compares numbers by value: 2.png before 10.png."""
    parts = re.split(r"([0-9]+)", name)
    # Odd parts are the digits. The name itself breaks ties such as 1.png and 01.png.
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def name_some(names: list[str]) -> str:
    """The first ten names, and how many more there are."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")
