"""A scripted drafter whose drafts a guide sees."""

from typing import Any

from hybrid.drafters.scripted import ScriptedDrafter
from hybrid.types import Draft


class GuidedDrafter(ScriptedDrafter):
    """Shows its draft to the job's guide, as a real one does."""

    def draft(self, jobs: Any) -> list[Draft]:
        drafts = super().draft(jobs)
        for job, draft in zip(jobs, drafts, strict=True):
            if job.guide is not None:
                job.guide.review((), draft.token_ids)
        return drafts
