"""Fill the blanks of a template and keep the rest: `python examples/infill.py`.

A diffusion model sees the text on both sides of a blank. `<blank:1>` is one token.
"""

from hybrid import Hybrid

PROMPT = "reason mod ten: 6, + 1, + 4, + 3, + 4, + 5"
TEMPLATE = "+ 1 = 7, + 4 =<blank:1>, + 3 =<blank:1>, + 4 = 8, + 5 =<blank:1>"


def main() -> None:
    """Print the template and the answer."""
    with Hybrid.from_policy("draft_only") as hybrid:
        result = hybrid.fill(PROMPT, TEMPLATE, seed=7, budget="5s")
    print(TEMPLATE)
    print(result.text)


if __name__ == "__main__":
    main()
