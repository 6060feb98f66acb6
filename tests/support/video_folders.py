"""Folders with the names of videos, without content."""

from pathlib import Path


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


VIDEOS = [f"{name}/v_{name}_g0{g}_c01.avi" for name in ("Bowling", "Archery") for g in range(1, 5)]


def put_ucf101(root: Path, inside: str = "UCF-101/") -> Path:
    """UCF-101's layout. Classes are not numbered in the order of their names; split n tests group n."""
    touch(root, *(inside + name for name in VIDEOS))
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_bytes(b"1 Bowling\r\n2 Archery\r\n")
    for n in (1, 2, 3):
        tests = [name for name in VIDEOS if f"_g0{n}_" in name]
        train = [f"{name} {1 + ('Archery' in name)}" for name in VIDEOS if name not in tests]
        (lists / f"testlist0{n}.txt").write_bytes("\r\n".join(tests).encode())
        (lists / f"trainlist0{n}.txt").write_bytes("\r\n".join([*train, ""]).encode())
    return root
