"""The public names, each with the module it is loaded from on first use."""

from hybrid.api import AsyncHybrid as AsyncHybrid
from hybrid.api import Hybrid as Hybrid
from hybrid.backends import Models as Models
from hybrid.errors import BackendError as BackendError
from hybrid.errors import Cancelled as Cancelled
from hybrid.errors import CapabilityError as CapabilityError
from hybrid.errors import CheckpointError as CheckpointError
from hybrid.errors import DeadlineExceeded as DeadlineExceeded
from hybrid.errors import HybridError as HybridError
from hybrid.errors import Overloaded as Overloaded
from hybrid.errors import PolicyError as PolicyError
from hybrid.errors import RequestError as RequestError
from hybrid.policies.loader import load_policy as load_policy
from hybrid.requests import Options as Options
from hybrid.types import Check as Check
from hybrid.types import Denoised as Denoised
from hybrid.types import Draft as Draft
from hybrid.types import Drafted as Drafted
from hybrid.types import Event as Event
from hybrid.types import Finished as Finished
from hybrid.types import Message as Message
from hybrid.types import Patched as Patched
from hybrid.types import Plan as Plan
from hybrid.types import Planned as Planned
from hybrid.types import Refinement as Refinement
from hybrid.types import Request as Request
from hybrid.types import Result as Result
from hybrid.types import Signals as Signals
from hybrid.types import Timing as Timing
from hybrid.types import Usage as Usage
from hybrid.types import Verdict as Verdict
from hybrid.types import Written as Written

__version__: str
__all__: list[str]
