"""Chat in a terminal, with the draft shown while it is denoised: `python examples/chat.py`.

The embedded demo pair answers one request at a time and knows only its ten tasks, so each line is
a conversation of its own here. Name a policy with models that converse, and keep the history:
`python examples/chat.py my_policy.yaml --history`.
"""

import argparse
import sys

from hybrid import Denoised, Finished, Hybrid, Message


def main(policy: str, keep_history: bool) -> None:
    """Answer each line of standard input until it ends."""
    history: list[Message] = []
    with Hybrid.from_policy(policy) as hybrid:
        for line in sys.stdin:
            messages = [*history, Message("user", line.strip())]
            for event in hybrid.stream(messages, budget="2s"):
                match event:
                    case Denoised(step=step, text=text):
                        print(f"  step {step}: {text}", file=sys.stderr)
                    case Finished(result=result):
                        print(result.text, flush=True)
                        if keep_history:
                            history = [*messages, Message("assistant", result.text)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("policy", nargs="?", default="draft_only")
    parser.add_argument("--history", action="store_true")
    options = parser.parse_args()
    main(options.policy, options.history)
