#!/usr/bin/env python3
"""Changes the code in one place at a time, and tells which of these changes no test notices.

    .venv/bin/python scripts/mutate.py --seed 1 --count 200 src/opservice/store src/opservice/auth
    .venv/bin/python scripts/mutate.py --results build/mutants.jsonl --then "-m '' tests/store"

A change, or mutant, turns a comparison round, swaps `and` and `or`, `+` and `-`, `True` and `False`, adds one to
a number, negates a condition, returns None, or leaves out a statement. Strings and log lines stay. Out of all
mutants of the given files the seed chooses --count. The first run finds, by the contexts of coverage.py, which
tests of tests/store, tests/auth, tests/methods and tests/domain run which line; each mutant meets only these,
those on SQLite first. With --mirrored it meets the tests that are named as its file is, and nothing is measured. What survives meets the tests of each --then, arguments of pytest, in turn.

Everything happens in copies of the tree. With --results, a file that exists is gone on with: killed mutants
stay killed, so that survivors can be given to other tests. The end prints the survivors.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ["tests/store", "tests/auth", "tests/methods", "tests/domain"]
OPERATORS: list[tuple[type[ast.AST], str, str]] = [
    (ast.Lt, "<", "<="), (ast.LtE, "<=", "<"), (ast.Gt, ">", ">="), (ast.GtE, ">=", ">"),
    (ast.Eq, "==", "!="), (ast.NotEq, "!=", "=="), (ast.Is, "is", "is not"),
    (ast.IsNot, r"is\s+not", "is"), (ast.In, "in", "not in"), (ast.NotIn, r"not\s+in", "in"),
    (ast.And, "and", "or"), (ast.Or, "or", "and"),
    (ast.Add, r"\+", "-"), (ast.Sub, "-", "+"), (ast.Mult, r"\*", "//"), (ast.FloorDiv, "//", "*"),
]  # fmt: skip
SLOW_IMPORTS = [
    "alembic.command",
    "cryptography",
    "grpc.aio",
    "jwt",
    "lark",
    "psycopg",
    "pytest",
    "sqlalchemy",
]
"""What each run of pytest would import anew. None of it is ours."""
LOGGING = re.compile(r"_?log(ger)?\.\w+$")


@dataclass
class Mutant:
    file: str
    line: int
    start: int
    """Where the change begins and ends, in bytes of the file."""
    end: int
    old: str
    new: str
    killed_by: str = ""
    """The tests that noticed it; empty while none has."""
    noticed: str = ""
    """The first test that failed, and how."""
    met: list[str] = field(default_factory=list)
    """What tests it has survived."""

    def apply(self, tree: Path) -> None:
        source = (ROOT / self.file).read_bytes()
        self._write(tree, source[: self.start] + self.new.encode() + source[self.end :])

    def undo(self, tree: Path) -> None:
        self._write(tree, (ROOT / self.file).read_bytes())

    def _write(self, tree: Path, source: bytes) -> None:
        path = tree / self.file
        path.write_bytes(source)
        # Bytecode is told from the source's size and second, both of which may be the same.
        for cached in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            cached.unlink()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: `{_short(self.old)}` → `{_short(self.new)}`"


def mutants_of(file: str) -> list[Mutant]:
    source = (ROOT / file).read_bytes()
    begins = [0]
    for text_of_line in source.splitlines(keepends=True):
        begins.append(begins[-1] + len(text_of_line))

    def start(node: ast.expr | ast.stmt) -> int:
        return begins[node.lineno - 1] + node.col_offset

    def end(node: ast.expr | ast.stmt) -> int:
        return begins[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)

    def text(node: ast.expr | ast.stmt) -> str:
        return source[start(node) : end(node)].decode()

    def between(
        first: ast.expr, second: ast.expr, operator: ast.AST
    ) -> Iterator[tuple[int, int, str]]:
        gap = source[end(first) : start(second)].decode()
        for kind, pattern, new in OPERATORS:
            if type(operator) is kind and (found := re.search(pattern, gap)):
                yield (
                    end(first) + len(gap[: found.start()].encode()),
                    end(first) + len(gap[: found.end()].encode()),
                    new,
                )

    def changes(node: ast.AST) -> Iterator[tuple[int, int, str]]:
        match node:
            case ast.Compare(left, ops, comparators):
                for first, operator, second in zip(
                    [left, *comparators], ops, comparators, strict=False
                ):
                    yield from between(first, second, operator)
            case ast.BoolOp(op, values):
                for first, second in itertools.pairwise(values):
                    yield from between(first, second, op)
            case ast.BinOp(left, op, right):
                yield from between(left, right, op)
            case ast.UnaryOp(ast.Not(), operand):
                yield start(node), end(node), text(operand)
            case ast.Constant(bool(value)):
                yield start(node), end(node), str(not value)
            case ast.Constant(int(value)) | ast.Constant(float(value)):
                yield start(node), end(node), str(value + 1)
            case ast.If(test) | ast.IfExp(test):
                yield start(test), end(test), f"(not ({text(test)}))"
            case ast.Return(ast.expr() as value) if not (
                isinstance(value, ast.Constant) and value.value is None
            ):
                yield start(node), end(node), "return None"
            case ast.Expr(ast.Call() | ast.Await()) if not LOGGING.match(text(node).split("(")[0]):
                yield start(node), end(node), "pass"
            case ast.Raise():
                yield start(node), end(node), "pass"

    made = []
    for node in _code(ast.parse(source)):
        for begin, stop, new in changes(node):
            try:
                compile(source[:begin] + new.encode() + source[stop:], file, "exec")
            except SyntaxError:
                continue
            line = source[:begin].count(b"\n") + 1
            made.append(Mutant(file, line, begin, stop, source[begin:stop].decode(), new))
    return made


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """All that runs: no annotations, no f-strings (whose places Python 3.11 does not know)."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_params"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.JoinedStr | ast.Assert):
                yield from _code(child)


def copy_tree(into: Path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)
    return into


def environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{tree}/src:{tree}/client/src"}


def read_contexts(data: Path, tree: Path) -> dict[tuple[str, int], list[str]]:
    """The tests, as pytest names them, that run a line of a file."""
    from coverage import CoverageData

    found = CoverageData(str(data))
    found.read()
    tests: dict[tuple[str, int], list[str]] = {}
    for measured in found.measured_files():
        name = re.sub(r"^.*?/(src/opservice/)", r"\1", measured)
        for line, contexts in found.contexts_by_lineno(measured).items():
            names = {node for each in contexts if (node := _node(each, tree))}
            tests[name, line] = sorted(names)
    return tests


def _node(context: str, tree: Path) -> str | None:
    """`store.test_x.test_y` is tests/store/test_x.py::test_y."""
    module, _, function = context.rpartition(".")
    while module:
        file = f"tests/{module.replace('.', '/')}.py"
        if (tree / file).exists():
            return f"{file}::{function}"
        module, _, first = module.rpartition(".")
        function = f"{first}::{function}"
    return None


def measure(tree: Path) -> Path:
    """Runs the rooms' tests once, noting which run what; returns the data of coverage.py."""
    settings = tree / "contexts.ini"
    settings.write_text(
        "[run]\nparallel = true\npatch = subprocess\nsource_pkgs = opservice\n"
        f"dynamic_context = test_function\ndata_file = {tree}/contexts\n"
    )
    run = [sys.executable, "-m", "coverage"]
    pytest = ["-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *ROOMS]
    subprocess.run([*run, "run", f"--rcfile={settings}", *pytest], cwd=tree, env=environment(tree))
    subprocess.run([*run, "combine", "-q", f"--rcfile={settings}"], cwd=tree, check=True)
    return tree / "contexts"


def mirrored(file: str, tree: Path) -> list[str]:
    """The tests that are named as the file is, for lines of which no test is known to run them."""
    found = tree.glob(f"tests/**/test_{Path(file).stem}*.py")
    return sorted(str(each.relative_to(tree)) for each in found if "e2e" not in each.parts)


def survives(tree: Path, arguments: Sequence[str], seconds: float) -> bool:
    """Whether pytest passes. It is forked from this process, which has imported what is slow to import."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        log = os.open(tree / "pytest.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(tree)
        os.environ.update(environment(tree))
        sys.path[:0] = [f"{tree}/src", f"{tree}/client/src"]
        import pytest

        given = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header", *arguments]
        code = pytest.main(given)
        os._exit(int(code))
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            # 5: nothing was left of the tests to run.
            return os.waitstatus_to_exitcode(status) in {0, 5}
        if time.monotonic() > deadline:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return False
        time.sleep(0.05)


def run(mutants: Sequence[Mutant], tree: Path, tests: dict[tuple[str, int], list[str]], options: argparse.Namespace) -> None:  # fmt: skip
    for mutant in mutants:
        nodes = tests.get((mutant.file, mutant.line)) or mirrored(mutant.file, tree)
        stages = []
        if nodes and not options.only_then:
            stages = [["-k", "not postgresql", *nodes], nodes]
        stages += [shlex.split(each) for each in options.then]
        mutant.apply(tree)
        for number, stage in enumerate(stages):
            name = shlex.join(stage) if number >= len(stages) - len(options.then) else "covering"
            if mutant.killed_by or (name != "covering" and name in mutant.met):
                continue
            if survives(tree, stage, options.seconds):
                if name not in mutant.met:
                    mutant.met.append(name)
            else:
                mutant.killed_by = name
                told = (tree / "pytest.log").read_text(errors="replace").splitlines()
                failed = [line for line in told if line.startswith(("FAILED", "ERROR"))]
                mutant.noticed = failed[0] if failed else "the time was over"
        mutant.undo(tree)
        state = (mutant.killed_by and "killed") or "SURVIVED"
        print(f"{state:8} {mutant}", flush=True)
        with options.results.open("a") as results:
            results.write(json.dumps(asdict(mutant)) + "\n")


def choose(options: argparse.Namespace) -> list[Mutant]:
    """Those of the results, which say last what became of each; or new ones by chance."""
    if options.results.exists():
        made = {}
        for line in options.results.read_text().splitlines():
            mutant = Mutant(**json.loads(line))
            made[mutant.file, mutant.start, mutant.end, mutant.new] = mutant
        return list(made.values())
    files = [
        file
        for path in options.paths
        for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))
        if "migrations" not in file.parts
    ]
    every = [each for file in files for each in mutants_of(str(file.resolve().relative_to(ROOT)))]
    chosen = random.Random(options.seed).sample(every, min(options.count, len(every)))
    print(f"{len(chosen)} of {len(every)} mutants of {len(files)} files, by seed {options.seed}")
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, help="files and directories to change")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument(
        "--seconds", type=float, default=600, help="after which tests count as failed"
    )
    parser.add_argument("--contexts", type=Path, help="data of coverage.py of an earlier run")
    parser.add_argument("--results", type=Path, default=ROOT / "build/mutants.jsonl")
    parser.add_argument("--then", action="append", default=[], metavar="ARGUMENTS")
    parser.add_argument("--mirrored", action="store_true", help="choose tests by their names")
    parser.add_argument("--only-then", action="store_true", help="leave out the covering tests")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for name in SLOW_IMPORTS:
        importlib.import_module(name)

    todo = [each for each in choose(options) if not each.killed_by]
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        trees = [copy_tree(Path(directory) / str(number)) for number in range(options.jobs)]
        contexts = options.contexts
        if contexts is None and not (options.only_then or options.mirrored):
            contexts = measure(trees[0])
        tests = {} if contexts is None else read_contexts(contexts, trees[0])
        pids = []
        for number, tree in enumerate(trees):
            if pid := os.fork():
                pids.append(pid)
                continue
            run(todo[number :: options.jobs], tree, tests, options)
            os._exit(0)
        for pid in pids:
            os.waitpid(pid, 0)
    every = choose(options)
    survivors = [each for each in every if not each.killed_by]
    print(f"\n{len(every)} mutants, {len(survivors)} survivors")
    for stage, count in Counter(each.killed_by for each in every if each.killed_by).most_common():
        print(f"{count:5} killed by {stage}")
    for each in sorted(survivors, key=lambda it: (it.file, it.line)):
        print(each)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) < 70 else f"{line[:66]} …"


if __name__ == "__main__":
    main()
