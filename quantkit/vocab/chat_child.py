"""The child process in which a checkpoint's chat template runs; started by chat.py.

Reads a request as JSON from stdin, writes {"rendered": [{"text": ...} or {"error": ...}, ...]} to stdout. Limits
are set after the imports and before the template is compiled.
"""

import contextlib
import json
import sys
import time

MAX_CHARACTERS = 16 * 2**20  # of one rendered conversation


def main() -> None:
    """Answer one request."""
    from transformers.utils.chat_template_utils import render_jinja_template

    request = json.load(sys.stdin)
    limit(request["cpu_seconds"], request["memory_bytes"])
    answers = []
    for conversation in request["conversations"]:
        try:
            rendered = render_jinja_template(
                conversations=[conversation],
                chat_template=request["template"],
                add_generation_prompt=request["add_generation_prompt"],
                **request["special_tokens"],
            )
            text = rendered[0][0]
            if len(text) > MAX_CHARACTERS:
                raise OverflowError(f"{len(text)} characters of text")  # noqa: TRY301
            answers.append({"text": text})
        except MemoryError:
            answers.append({"error": f"it asks for more than {request['memory_bytes'] // 2**20} MiB of memory"})
        except Exception as error:  # whatever untrusted code raises is told to the parent, which raises it
            answers.append({"error": f"{type(error).__name__}: {str(error)[:300]}"})
    json.dump({"rendered": answers}, sys.stdout)


def limit(cpu_seconds: int, memory_bytes: int) -> None:
    """From here on: so much more CPU time and address space, and no file grows."""
    import resource

    used = int(time.process_time()) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + cpu_seconds, used + cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # no /proc, or an RLIMIT_AS that the system does not keep (macOS)
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
            pages = int(file.read().split()[0])
        allowed = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


if __name__ == "__main__":
    main()
