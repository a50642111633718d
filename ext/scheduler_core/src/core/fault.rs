//! Rules that a test may break on purpose, to prove that the simulation would notice.
//! They must never be breakable in a build without the feature `faults`, which only tests have.

use super::Core;

/// One broken rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Fault {
    /// A start takes nothing from its node's books.
    SkipDeduction,
    /// A pod that ended gives nothing back.
    SkipRelease,
    /// Slots that were leased count as free.
    GrantTwice,
    /// A ticket is dropped without an answer.
    ForgetTicket,
    /// The youngest ticket is served first.
    YoungestFirst,
    /// Tickets have no deadline.
    IgnoreDeadline,
    /// Queues have no bound.
    IgnoreQueueLimit,
    /// A request that is repeated gets another lease.
    ForgetRequest,
    /// A lease that has ended can be given back again.
    AcceptStaleLease,
    /// The leases of a silent gateway live on.
    KeepLeasesOfSilent,
    /// `max_replica` is not looked at.
    IgnoreReplicaLimit,
    /// A tenant's limit of GPUs is not looked at.
    IgnoreTenantLimit,
    /// A node takes any number of pods.
    IgnorePodLimit,
    /// A disabled tenant is served.
    ServeDisabled,
    /// Slots of a pod of an older revision are leased.
    LeaseOldRevision,
    /// A pod with leases makes room.
    EvictBusy,
    /// The last pod that `min_replica` wants makes room.
    EvictMinimum,
    /// A worker is saved while another one of the same function is.
    SaveTwice,
    /// A snapshot that failed is tried again at once.
    IgnoreSaveBackoff,
    /// A snapshot of an older revision counts as one of the current.
    KeepStaleSnapshot,
    /// Idle pods are not found when room has to be made.
    ForgetIdle,
    /// Late news of a pod that ended makes it live again.
    ForgetTombstones,
}

impl Fault {
    /// Every rule that can be broken.
    pub const ALL: &'static [Fault] = &[
        Fault::SkipDeduction,
        Fault::SkipRelease,
        Fault::GrantTwice,
        Fault::ForgetTicket,
        Fault::YoungestFirst,
        Fault::IgnoreDeadline,
        Fault::IgnoreQueueLimit,
        Fault::ForgetRequest,
        Fault::AcceptStaleLease,
        Fault::KeepLeasesOfSilent,
        Fault::IgnoreReplicaLimit,
        Fault::IgnoreTenantLimit,
        Fault::IgnorePodLimit,
        Fault::ServeDisabled,
        Fault::LeaseOldRevision,
        Fault::EvictBusy,
        Fault::EvictMinimum,
        Fault::SaveTwice,
        Fault::IgnoreSaveBackoff,
        Fault::KeepStaleSnapshot,
        Fault::ForgetIdle,
        Fault::ForgetTombstones,
    ];
}

impl Core {
    #[cfg(feature = "faults")]
    pub(super) fn breaks(&self, fault: Fault) -> bool {
        self.config.fault == Some(fault)
    }

    #[cfg(not(feature = "faults"))]
    #[inline(always)]
    pub(super) fn breaks(&self, _fault: Fault) -> bool {
        false
    }
}
