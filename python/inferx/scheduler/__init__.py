"""The scheduler process around `_ext.SchedulerCore`: facts in, effects carried out.

Must never decide about placement, leases or standby; the core does.
"""

from inferx.scheduler.service import Scheduler, run

__all__ = ["Scheduler", "run"]
