"""The command line: each file parses the options of one command, calls one function and prints.

Results go to stdout, progress and notes to stderr.
"""

from __future__ import annotations

import sys
import traceback
from typing import Any

from flatq.cli.streams import keep_writing
from flatq.errors import EXIT_BUG, FlatqError
from flatq.failures import explained
from flatq.library_logs import quiet_libraries

__all__ = ["main"]


def main() -> None:
    """Run the command line and exit with the codes of `flatq.errors`."""
    keep_writing()
    import typer

    from flatq.cli.app import app

    # typer may carry a click of its own, so the class is found through typer.
    usage_error: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        with quiet_libraries():
            result = app(standalone_mode=False)
        sys.stdout.flush()
    except FlatqError as error:
        print(f"flatq: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except usage_error as error:
        error.show()
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        print("flatq: interrupted", file=sys.stderr)
        sys.exit(130)
    except (Exception, SystemExit) as error:  # a bug must never look like a failed gate
        # typer turns the broken pipe to another process, which is no pipe of the streams, into SystemExit(1).
        if isinstance(error, SystemExit) and not isinstance(error.__context__, OSError):
            raise  # a helping process of `flatq eval`, with its own code
        known = explained(error)
        if known is not None:
            print(f"flatq: {known}", file=sys.stderr)
            sys.exit(known.exit_code)
        traceback.print_exc()
        print(
            "flatq: this is a bug in flatq, not a verdict; please report it with the lines above",
            file=sys.stderr,
        )
        sys.exit(EXIT_BUG)
    sys.exit(result if isinstance(result, int) else 0)
