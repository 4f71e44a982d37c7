"""The policy engine behind any OpenAI or Anthropic client: `hybrid serve`, or `create_app`.

Needs the extra `serve`.
"""

from hybrid.serve.app import create_app
from hybrid.serve.settings import Settings

__all__ = ["Settings", "create_app"]
