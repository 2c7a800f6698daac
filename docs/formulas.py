"""Formulas as MathML, by the KaTeX that sphinxcontrib-katex brings, in one node process for a build.

Its own server speaks over a socket, and the build fails where a busy machine is late to answer. A pipe waits.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sphinxcontrib.katex
from sphinx.errors import ExtensionError

_SCRIPT = """
const katex = require(process.argv[1]);
require("readline").createInterface({input: process.stdin}).on("line", (line) => {
  const [latex, displayMode] = JSON.parse(line);
  let answer;
  try {
    answer = {mathml: katex.renderToString(latex, {displayMode, output: "mathml", throwOnError: true})};
  } catch (error) {
    answer = {fault: error.message};
  }
  console.log(JSON.stringify(answer));
});
"""

_processes: dict[int, subprocess.Popen[str]] = {}


def _process() -> subprocess.Popen[str]:
    """The node process of this process of Sphinx, which may have forked."""
    if os.getpid() not in _processes:
        library = str(Path(sphinxcontrib.katex.__file__).parent / "katex.min.js")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        _processes[os.getpid()] = subprocess.Popen(
            ["node", "-e", _SCRIPT, library], text=True, encoding="utf-8", **pipes
        )
    return _processes[os.getpid()]


def render(latex: str, options: Mapping[str, Any] | None = None) -> str:
    """MathML of a formula; a fault in it ends the build and names it."""
    process = _process()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps([latex, bool((options or {}).get("displayMode"))]) + "\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    if "fault" in answer:
        raise ExtensionError(f"no formula: {latex!r}: {answer['fault']}")
    return answer["mathml"]


def setup(app: Any) -> dict[str, Any]:
    app.setup_extension("sphinxcontrib.katex")
    sphinxcontrib.katex.render_latex = render
    return {"parallel_read_safe": True, "parallel_write_safe": True}
