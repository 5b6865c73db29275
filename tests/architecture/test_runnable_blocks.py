"""Every ```python block that a reader may copy from the README or a card runs as it stands."""

import re
import runpy
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "src/steadytune/methods").glob("*.md"))]
FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)$")


@dataclass(frozen=True)
class Block:
    """The code of one fenced block and the line of the page on which it starts."""

    code: str
    line: int
    info: tuple[str, ...]

    @property
    def runs(self) -> bool:
        return "no-run" not in self.info


def python_blocks(text: str) -> list[Block]:
    """The fenced blocks whose language is python, in order; a fence that is never closed is an error."""
    blocks: list[Block] = []
    opened: tuple[re.Match[str], int] | None = None
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        fence = FENCE.match(line)
        if fence is None:
            continue
        if opened is None:
            opened = (fence, number)
        elif len(fence["ticks"]) >= len(opened[0]["ticks"]) and not fence["info"].strip():
            start, first = opened
            info = tuple(start["info"].split())
            if info[:1] == ("python",):
                indent = len(start["indent"])
                code = "\n".join(inner[indent:] for inner in lines[first : number - 1])
                blocks.append(Block(code + "\n", first + 1, info[1:]))
            opened = None
    if opened is not None:
        raise ValueError(f"the fence in line {opened[1]} is never closed")
    return blocks


def run_block(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the block as a program of its own in `folder`; line numbers of errors are those of the page."""
    program = folder / "block.py"
    program.write_text("\n" * (block.line - 1) + block.code, encoding="utf-8")
    monkeypatch.chdir(folder)
    runpy.run_path(str(program), run_name="__main__")


CASES = [
    pytest.param(block, id=f"{page.relative_to(ROOT).as_posix()}-{number}")
    for page in PAGES
    for number, block in enumerate(python_blocks(page.read_text(encoding="utf-8")), start=1)
    if block.runs
]


@pytest.mark.parametrize("block", CASES)
def test_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_block(block, tmp_path, monkeypatch)


PAGE = """\
# Page

```python
x = 1
```

```python no-run
raise RuntimeError
```

```bash
false
```

- item

  ```python
  if True:
      y = 2
  ```

````markdown
```python
raise RuntimeError
```
````
"""


def test_python_blocks_are_found_with_their_lines() -> None:
    assert [(b.code, b.line, b.runs) for b in python_blocks(PAGE)] == [
        ("x = 1\n", 4, True),
        ("raise RuntimeError\n", 8, False),
        ("if True:\n    y = 2\n", 18, True),
    ]


def test_unclosed_fence_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 3 is never closed"):
        python_blocks("a\n\n```python\nx = 1\n")


def test_failing_block_fails_on_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NameError, match="never_defined") as caught:
        run_block(Block("x = 1\nnever_defined\n", 40, ()), tmp_path, monkeypatch)
    assert caught.traceback[-1].lineno == 40  # counted from 0 there


def test_a_block_sees_neither_another_block_nor_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_block(Block("left_over = 1\nopen('written.txt', 'w').close()\n", 1, ()), tmp_path, monkeypatch)
    assert (tmp_path / "written.txt").exists()
    with pytest.raises(NameError):
        run_block(Block("left_over\n", 1, ()), tmp_path, monkeypatch)
