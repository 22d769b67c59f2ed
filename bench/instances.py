"""A contender's process: started as Lambda starts one, and controlled over a pipe."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from bench.contenders import Contender

Json = dict[str, Any]
WORKER = Path(__file__).with_name("worker.py")
LAMBDA_VARIABLES = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info.major}.{sys.version_info.minor}",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
    "AWS_LAMBDA_FUNCTION_NAME": "order-api",
    "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
    "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
    "AWS_REGION": "us-east-1",
    "LANG": "en_US.UTF-8",
    "TZ": ":UTC",
}


class Instance:
    """One process of a contender. It starts importing at once; `imported` waits for the end."""

    def __init__(
        self, contender: Contender, tree: Path, variables: Mapping[str, str], core: int | None
    ) -> None:
        self._name = contender.name
        self._output = TemporaryFile("w+")  # noqa: SIM115 (close() closes it)
        answers, answering = os.pipe()
        core_or_none = "-" if core is None else str(core)
        arguments = [str(tree), contender.module, contender.attribute, core_or_none, str(answering)]
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", "-B", str(WORKER), *arguments],
            cwd=tree,
            env={**LAMBDA_VARIABLES, "LAMBDA_TASK_ROOT": str(tree), **contender.variables, **variables},
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=self._output,
            pass_fds=[answering],
            text=True,
        )
        os.close(answering)
        self._answers = os.fdopen(answers)

    def __enter__(self) -> "Instance":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        self._answers.close()
        self._output.close()

    def imported(self) -> int:
        """Nanoseconds that the import of the handler's module took."""
        return int(self.answer()["import_ns"])

    def ask(self, do: str, **arguments: Any) -> Json:
        """Send a command, wait for its result. Raises SystemExit with the contender's output on failure."""
        self.tell(do, **arguments)
        return self.answer()

    def tell(self, do: str, **arguments: Any) -> None:
        assert self._process.stdin  # noqa: S101 (Popen was given a pipe)
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed() from None

    def answer(self) -> Json:
        """The result of the oldest command without one."""
        line = self._answers.readline()
        if not line:
            raise self._failed()
        answer: Json = json.loads(line)
        return answer

    def _failed(self) -> SystemExit:
        self._process.wait()
        self._output.seek(0)
        last = self._output.read()[-2000:].strip()
        return SystemExit(f"{self._name} failed. Its output:\n{last}")
